//! The log: a line for each event, on standard error, as text or JSON.
//!
//! - Nobody can fill a disk by making the agent speak: each place in the code that logs has [`BURST`] lines, which come
//!   back at [`LINES_PER_SECOND`]. What is left out is counted and, now and then, told.
//! - The log file of an agent in the background is put aside when it is [`MAX_FILE_BYTES`] long, in place of the one before.
//! - The last lines stay in memory, for `agentnet bugreport`.
//! - The level can be changed while the agent runs.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use super::state_dir::{LOG_FILE, OLD_LOG_FILE};
use crate::api::{Error, ErrorCode};
use crate::config::LogFormat;

/// A log file that is longer is put aside, bytes.
pub const MAX_FILE_BYTES: u64 = 16 << 20;
/// Lines of one place in the code, at once.
const BURST: f64 = 100.0;
/// So many come back in a second. At some 200 bytes a line, one place that a stranger can make speak without end fills a
/// log file in two days.
const LINES_PER_SECOND: f64 = 0.5;
/// Lines kept in memory, and their bytes together.
const KEPT_LINES: usize = 400;
/// See [`KEPT_LINES`].
const KEPT_BYTES: usize = 64 << 10;
/// Longest line kept, bytes; the rest of it is cut.
const KEPT_LINE: usize = 2048;

/// The running log of this process.
#[derive(Debug, Clone)]
pub struct Log {
    level: reload::Handle<EnvFilter, Registry>,
    limit: Arc<Limit>,
    output: Arc<Output>,
}

impl Log {
    /// Sends everything that this process logs from now on to standard error. `state_dir` is that of an agent in the
    /// background, whose standard error is [`LOG_FILE`] there.
    ///
    /// # Errors
    /// The filter is not valid, or there is a log already.
    pub fn start(level: &str, format: LogFormat, state_dir: Option<&Path>) -> Result<Self, Error> {
        let colour = format == LogFormat::Text
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && io::IsTerminal::is_terminal(&io::stderr());
        let output = Output { file: state_dir.map(|path| Mutex::new(File::of(path))), ..Output::new(true) };
        let (subscriber, log) = subscriber(level, format, colour, output)?;
        tracing::subscriber::set_global_default(subscriber).map_err(|error| failed(&error.to_string()))?;
        Ok(log)
    }

    /// Changes what is logged.
    ///
    /// # Errors
    /// The filter is not valid. It stays as it was.
    pub fn set_level(&self, level: &str) -> Result<(), Error> {
        self.level.reload(filter(level)?).map_err(|error| failed(&error.to_string()))
    }

    /// The last lines, the oldest first.
    #[must_use]
    pub fn last_lines(&self) -> Vec<String> {
        self.output.kept.lock().lines.iter().cloned().collect()
    }

    /// How many lines were left out since the last call.
    #[must_use]
    pub fn take_left_out(&self) -> u64 {
        self.limit.left_out.swap(0, Ordering::Relaxed)
    }
}

fn subscriber(
    level: &str,
    format: LogFormat,
    colour: bool,
    output: Output,
) -> Result<(impl Subscriber + Send + Sync, Log), Error> {
    let (level, handle) = reload::Layer::new(filter(level)?);
    let log = Log { level: handle, limit: Arc::default(), output: Arc::new(output) };
    // A log that cannot be written, on a full disk for one, is not worth a panic.
    let lines = fmt::layer().with_writer(Writer(Arc::clone(&log.output))).with_ansi(colour).log_internal_errors(false);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let limiter = Limiter(Arc::clone(&log.limit));
    Ok((Registry::default().with(level).with(limiter).with(lines), log))
}

/// The session library calls every peer that does not answer an error. The agent has its own words for that.
fn filter(configured: &str) -> Result<EnvFilter, Error> {
    EnvFilter::builder().parse(format!("boringtun=off,{configured}")).map_err(|error| failed(&error.to_string()))
}

fn failed(why: &str) -> Error {
    Error::new(ErrorCode::Internal, format!("the log cannot be set up: {why}"), "report this")
}

/// Holds each place in the code to its rate.
struct Limiter(Arc<Limit>);

impl<S: Subscriber> Layer<S> for Limiter {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.0.allows(event.metadata(), Instant::now())
    }
}

/// As many entries as there are places in the code that log.
#[derive(Debug, Default)]
struct Limit {
    places: Mutex<HashMap<Identifier, Allowance>>,
    left_out: AtomicU64,
}

#[derive(Debug)]
struct Allowance {
    lines: f64,
    at: Instant,
}

impl Limit {
    fn allows(&self, metadata: &Metadata<'_>, now: Instant) -> bool {
        let mut places = self.places.lock();
        let place = places.entry(metadata.callsite()).or_insert(Allowance { lines: BURST, at: now });
        let back = now.saturating_duration_since(place.at).as_secs_f64() * LINES_PER_SECOND;
        (place.lines, place.at) = ((place.lines + back).min(BURST), now);
        let allowed = place.lines >= 1.0;
        if allowed {
            place.lines -= 1.0;
        } else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        allowed
    }
}

/// Where lines go.
#[derive(Debug)]
struct Output {
    /// Lines are written to standard error.
    is_written: bool,
    /// What that is, of an agent in the background.
    file: Option<Mutex<File>>,
    kept: Mutex<Kept>,
}

/// The last lines.
#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Output {
    fn new(is_written: bool) -> Self {
        Self { is_written, file: None, kept: Mutex::default() }
    }

    fn write(&self, line: &[u8]) -> io::Result<()> {
        self.kept.lock().push(line);
        if !self.is_written {
            return Ok(());
        }
        let mut file = self.file.as_ref().map(|file| file.lock());
        if let Some(file) = &mut file {
            file.about_to_write(line.len() as u64);
        }
        io::stderr().lock().write_all(line)
    }
}

impl Kept {
    fn push(&mut self, line: &[u8]) {
        let line = plain(&String::from_utf8_lossy(line.get(..KEPT_LINE).unwrap_or(line)));
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.lines.len() > KEPT_LINES || self.bytes > KEPT_BYTES {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.len();
        }
    }
}

/// A line without its end and without colours.
fn plain(line: &str) -> String {
    let mut parts = line.trim_end().split("\u{1b}[");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    text
}

/// The file that standard error is.
#[derive(Debug)]
struct File {
    directory: PathBuf,
    bytes: u64,
}

impl File {
    fn of(state_dir: &Path) -> Self {
        let bytes = fs::metadata(state_dir.join(LOG_FILE)).map_or(0, |file| file.len());
        Self { directory: state_dir.to_owned(), bytes }
    }

    /// Puts the file aside if it would become too long. Where that does not work, it is tried after as much again.
    fn about_to_write(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes > MAX_FILE_BYTES {
            self.bytes = bytes;
            let _ = begin_anew(&self.directory).and_then(|file| Ok(nix::unistd::dup2_stderr(file)?));
        }
    }
}

fn begin_anew(state_dir: &Path) -> io::Result<fs::File> {
    let path = state_dir.join(LOG_FILE);
    fs::rename(&path, state_dir.join(OLD_LOG_FILE))?;
    // Never one that somebody else put there.
    OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path)
}

/// One line, as the formatter hands it over whole.
#[derive(Clone)]
struct Writer(Arc<Output>);

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What is logged by `work`.
    fn logged(level: &str, format: LogFormat, work: impl FnOnce(&Log)) -> Vec<String> {
        let (subscriber, log) = subscriber(level, format, false, Output::new(false)).unwrap();
        tracing::subscriber::with_default(subscriber, || work(&log));
        log.last_lines()
    }

    #[test]
    fn one_place_cannot_flood_the_log_and_others_still_speak() {
        let mut left_out = 0;
        let lines = logged("info", LogFormat::Text, |log| {
            for number in 0..10_000 {
                tracing::info!(number, "again");
            }
            tracing::info!("something else");
            left_out = log.take_left_out();
        });
        let again = lines.iter().filter(|line| line.contains("again")).count();
        assert!((100..110).contains(&again), "{again} lines");
        assert_eq!(left_out, 10_000 - again as u64);
        assert!(lines.last().unwrap().ends_with("something else"), "{lines:?}");
    }

    #[test]
    fn lines_come_back_with_time() {
        let limit = Limit::default();
        let (subscriber, _) = subscriber("info", LogFormat::Text, false, Output::new(false)).unwrap();
        let metadata = tracing::subscriber::with_default(subscriber, || tracing::info_span!("x").metadata().unwrap());
        let start = Instant::now();
        let count = |now| (0..1000).filter(|_| limit.allows(metadata, now)).count();
        assert_eq!(count(start), 100);
        assert_eq!(count(start + Duration::from_secs(20)), 10);
        assert_eq!(count(start + Duration::from_secs(20_000)), 100);
    }

    #[test]
    fn json_is_one_object_a_line_with_the_fields_in_it() {
        let lines = logged("debug", LogFormat::Json, |_| {
            tracing::debug!(peer = "47pjoycnsr", conn = 7, "handshake begins\nand a second line");
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        let fields = &line["fields"];
        assert_eq!(
            (&fields["peer"], fields["conn"].as_u64(), &line["level"]),
            (&"47pjoycnsr".into(), Some(7), &"DEBUG".into())
        );
    }

    #[test]
    fn the_level_changes_while_it_runs_and_stays_when_the_new_one_is_no_level() {
        let lines = logged("warn", LogFormat::Text, |log| {
            tracing::info!("one");
            log.set_level("info").unwrap();
            tracing::info!("two");
            assert!(log.set_level("a=nonsense").is_err());
            tracing::info!("three");
            log.set_level("off").unwrap();
            tracing::error!("four");
        });
        let said: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').next_back()).collect();
        assert_eq!(said, ["two", "three"]);
    }

    #[test]
    fn lines_kept_are_few_short_and_plain() {
        let mut kept = Kept::default();
        kept.push(b"\x1b[2m2026\x1b[0m \x1b[32m INFO\x1b[0m said\n");
        assert_eq!(kept.lines[0], "2026  INFO said");
        (0..2 * KEPT_LINES).for_each(|number| kept.push(format!("{number}\n").as_bytes()));
        assert_eq!((kept.lines.len(), kept.lines[0].as_str()), (KEPT_LINES, "400"));
        (0..100).for_each(|_| kept.push(&[b'x'; 10_000]));
        assert_eq!(kept.lines.len(), KEPT_BYTES / KEPT_LINE);
        assert_eq!(kept.bytes, kept.lines.iter().map(String::len).sum::<usize>());
    }

    #[test]
    fn a_long_file_is_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOG_FILE);
        fs::write(&path, "old").unwrap();
        let mut new = begin_anew(directory.path()).unwrap();
        new.write_all(b"new").unwrap();
        assert_eq!(fs::read(directory.path().join(OLD_LOG_FILE)).unwrap(), b"old");
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(File::of(directory.path()).bytes, 3);
    }
}
