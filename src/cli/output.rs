//! Everything the command line prints: documents, lines, tables, errors, notes.

use std::io::{self, ErrorKind, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use owo_colors::{OwoColorize, Style};
use serde::Serialize;

use super::screen;
use crate::api::{Error, ErrorCode, ErrorDocument, ExitStatus};

/// Why a command ends early.
#[derive(Debug)]
pub(super) enum Failure {
    /// An error to be told.
    Error(Error),
    /// All was told; only the exit status is left.
    Told(ExitStatus),
    /// The reader of standard output is gone, and with it the reason to go on.
    ReaderGone,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<crate::config::Invalid> for Failure {
    fn from(invalid: crate::config::Invalid) -> Self {
        Self::Error(invalid.into())
    }
}

/// Of writing to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let code = match error.kind() {
            ErrorKind::BrokenPipe => return Self::ReaderGone,
            ErrorKind::StorageFull => ErrorCode::DiskFull,
            _ => ErrorCode::Internal,
        };
        let message = format!("standard output cannot be written: {error}");
        Self::Error(Error::new(code, message, "look at where the output goes"))
    }
}

/// Standard output and standard error, and how to write to them.
pub(super) struct Output {
    /// Print JSON documents instead of text.
    pub(super) json: bool,
    /// Print no notes.
    pub(super) quiet: bool,
    /// Standard output is a terminal.
    pub(super) terminal: bool,
    colour: bool,
    error_colour: bool,
    /// The terminal only takes plain lines.
    dumb: bool,
    /// It shows the screen that [`Output::redraw`] draws on.
    on_screen: bool,
    /// The locale can show `✓`.
    unicode: bool,
    out: Box<dyn Write>,
    err: Box<dyn Write>,
}

impl Output {
    /// The process' own streams.
    pub(super) fn standard(json: bool, quiet: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|value| value.is_empty() || value == "dumb");
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && !dumb;
        let terminal = io::stdout().is_terminal();
        Self {
            json,
            quiet,
            terminal,
            colour: wanted && terminal,
            error_colour: wanted && io::stderr().is_terminal(),
            dumb,
            on_screen: false,
            unicode: locale_is_utf8(|variable| std::env::var(variable).ok()),
            out: Box::new(io::BufWriter::new(io::stdout())),
            err: Box::new(io::stderr()),
        }
    }

    /// A result: as a document, or as lines that `text` writes.
    pub(super) fn result<T: Serialize>(
        &mut self,
        document: &T,
        text: impl FnOnce(&mut Page) -> io::Result<()>,
    ) -> Result<(), Failure> {
        if self.json {
            return self.document(document);
        }
        let page = self.page(text)?;
        self.out.write_all(&page)?;
        self.flush()
    }

    /// One document on one line.
    pub(super) fn document<T: Serialize>(&mut self, document: &T) -> Result<(), Failure> {
        // Into memory first: a document is written whole or not at all.
        let mut line = serde_json::to_vec(document)
            .map_err(|error| Error::new(ErrorCode::Internal, error.to_string(), "report this"))?;
        line.push(b'\n');
        self.out.write_all(&line)?;
        self.flush()
    }

    /// A page, in place of the one before: on a terminal that can, on a screen of its own until [`Output::leave_screen`];
    /// elsewhere below it.
    pub(super) fn redraw(&mut self, text: impl FnOnce(&mut Page) -> io::Result<()>) -> Result<(), Failure> {
        if !self.terminal || self.dumb {
            let page = self.page(text)?;
            self.out.write_all(&page)?;
            self.out.write_all(b"\n")?;
            return self.flush();
        }
        if !self.on_screen {
            self.on_screen = true;
            screen::enter(&mut self.out)?;
        }
        let size = screen::size();
        let mut page = Page { text: Vec::new(), colour: self.colour, unicode: self.unicode, width: Some(size.columns) };
        text(&mut page)?;
        screen::draw(&mut self.out, &String::from_utf8_lossy(&page.text), size, self.unicode)?;
        self.flush()
    }

    /// Gives the terminal back as it was.
    pub(super) fn leave_screen(&mut self) {
        if std::mem::take(&mut self.on_screen) {
            // A terminal that is gone needs nothing.
            let _ = screen::leave(&mut self.out).and_then(|()| self.out.flush());
        }
    }

    /// A remark beside the result, on standard error. Dropped when nobody is to read it.
    pub(super) fn note(&mut self, text: &str) {
        if !self.quiet && !self.json {
            let _ = writeln!(self.err, "{}", clean(text));
        }
    }

    /// Tells why the command ends early and gives the exit status.
    pub(super) fn report(&mut self, failure: &Failure) -> ExitStatus {
        let error = match failure {
            Failure::Error(error) => error,
            Failure::Told(status) => return *status,
            Failure::ReaderGone => return ExitStatus::Done,
        };
        if self.json {
            match self.document(&ErrorDocument { error: error.clone() }) {
                Err(Failure::ReaderGone) | Ok(()) => return error.code.exit_status(),
                Err(_) => {}
            }
        }
        let _ = self.flush();
        let text = error_text(error, self.error_colour);
        let _ = self.err.write_all(text.as_bytes());
        error.code.exit_status()
    }

    /// Hands everything written so far to the reader.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.out.flush()?)
    }

    fn page(&self, text: impl FnOnce(&mut Page) -> io::Result<()>) -> io::Result<Vec<u8>> {
        let mut page = Page { text: Vec::new(), colour: self.colour, unicode: self.unicode, width: None };
        text(&mut page)?;
        Ok(page.text)
    }
}

/// Text for people, in the making.
pub(super) struct Page {
    text: Vec<u8>,
    colour: bool,
    unicode: bool,
    /// Characters in a line, where that counts.
    width: Option<usize>,
}

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Page {
    /// `text` in a style, where styles are shown.
    pub(super) fn styled(&self, text: &str, style: Style) -> String {
        if self.colour { text.style(style).to_string() } else { text.to_owned() }
    }

    /// The mark before a step that holds or fails.
    pub(super) fn mark(&self, ok: bool) -> String {
        let text = match (ok, self.unicode) {
            (true, true) => "✓",
            (false, true) => "✗",
            (true, false) => "ok  ",
            (false, false) => "fail",
        };
        self.styled(text, if ok { Style::new().green() } else { Style::new().red() })
    }

    /// `label   value`, the values in one column.
    pub(super) fn field(&mut self, label: &str, value: &str) -> io::Result<()> {
        if value.is_empty() {
            return Ok(());
        }
        let label = self.styled(&format!("{label:<10}"), Style::new().dimmed());
        writeln!(self, "  {label} {}", clean(value))
    }

    /// A table from which `droppable` columns are left out, the first of them first, until it fits the page.
    pub(super) fn fitting_table(
        &mut self,
        header: &[&str],
        rows: Vec<Vec<String>>,
        droppable: &[&str],
    ) -> io::Result<()> {
        let Some(width) = self.width else { return self.table(header, rows) };
        let (mut header, mut rows) = (header.to_vec(), rows);
        for name in droppable {
            let needed: usize = (0..header.len()).map(|column| column_width(&header, &rows, column) + 2).sum();
            let Some(column) = header.iter().position(|title| title == name).filter(|_| needed > width + 2) else {
                continue;
            };
            header.remove(column);
            rows.iter_mut().filter(|row| column < row.len()).for_each(|row| drop(row.remove(column)));
        }
        self.table(&header, rows)
    }

    /// A table without lines, two blanks between columns, never wrapped: `grep` and `awk` work on it.
    pub(super) fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(header.to_vec());
        for row in rows {
            table.add_row(row.iter().map(|cell| clean(cell)).collect::<Vec<_>>());
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for (index, line) in table.lines().enumerate() {
            let line = line.trim_end();
            let line = if index == 0 { self.styled(line, Style::new().bold()) } else { line.to_owned() };
            writeln!(self, "{line}")?;
        }
        Ok(())
    }
}

fn column_width(header: &[&str], rows: &[Vec<String>], column: usize) -> usize {
    let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
    cells.chain(header.get(column).map(|title| title.len())).max().unwrap_or(0)
}

/// An error for people: what happened, why, what to do.
fn error_text(error: &Error, colour: bool) -> String {
    let label = |text: &str, style: Style| if colour { text.style(style).to_string() } else { text.to_owned() };
    let mut lines = error.message.lines();
    let what = clean(lines.next().unwrap_or_default());
    let mut text = format!("{} {what}\n", label("error:", Style::new().red().bold()));
    for why in lines {
        text.push_str(&format!("  {}\n", clean(why)));
    }
    if !error.hint.is_empty() {
        text.push_str(&format!("{} {}\n", label("hint:", Style::new().cyan().bold()), clean(&error.hint)));
    }
    text
}

/// Text without what could steer a terminal: some of it was written by other agents.
pub(super) fn clean(text: &str) -> String {
    let steers = |c: char| {
        c.is_control() || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

/// Whether the environment names a UTF-8 locale, by POSIX' order of precedence.
fn locale_is_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    let locale =
        ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
    locale.is_some_and(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// What `text` writes, without colour, in a UTF-8 locale.
    pub(in crate::cli) fn rendered(text: impl FnOnce(&mut Page) -> io::Result<()>) -> String {
        let mut page = Page { text: Vec::new(), colour: false, unicode: true, width: None };
        text(&mut page).unwrap();
        String::from_utf8(page.text).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::rendered;
    use super::*;

    #[test]
    fn tables_align_and_do_not_trail_blanks() {
        let text = rendered(|page| {
            page.table(
                &["NAME", "ID", "RTT"],
                vec![
                    vec!["one".into(), "ybndrfg8ej".into(), "0.42 ms".into()],
                    vec!["longer-name".into(), "x".into(), "-".into()],
                ],
            )
        });
        assert_eq!(
            text,
            "NAME         ID          RTT\none          ybndrfg8ej  0.42 ms\nlonger-name  x           -\n"
        );
    }

    #[test]
    fn columns_go_one_by_one_until_the_table_fits() {
        let table = |width| {
            let mut page = Page { text: Vec::new(), colour: false, unicode: false, width };
            let row = vec!["one".to_owned(), "fd61::1".to_owned(), "direct".to_owned()];
            page.fitting_table(&["PEER", "IPV6", "PATH"], vec![row], &["IPV6", "PATH"]).unwrap();
            String::from_utf8(page.text).unwrap()
        };
        let whole = "PEER  IPV6     PATH\none   fd61::1  direct\n";
        assert_eq!(table(None), whole);
        assert_eq!(table(Some(21)), whole);
        assert_eq!(table(Some(20)), "PEER  PATH\none   direct\n");
        assert_eq!(table(Some(5)), "PEER\none\n");
    }

    #[test]
    fn colour_is_only_there_when_asked_for() {
        let plain = Page { text: Vec::new(), colour: false, unicode: false, width: None };
        assert_eq!(plain.styled("a", Style::new().red()), "a");
        assert_eq!(plain.mark(false), "fail");
        let coloured = Page { text: Vec::new(), colour: true, unicode: true, width: None };
        assert_eq!(coloured.mark(true), "\u{1b}[32m✓\u{1b}[0m");
    }

    #[test]
    fn errors_have_what_why_and_hint() {
        let error = Error::new(ErrorCode::Internal, "what\nwhy one\nwhy two", "do this");
        assert_eq!(error_text(&error, false), "error: what\n  why one\n  why two\nhint: do this\n");
        let bare = Error::new(ErrorCode::Internal, "what", "");
        assert_eq!(error_text(&bare, false), "error: what\n");
        assert!(error_text(&bare, true).starts_with("\u{1b}["));
    }

    #[test]
    fn text_from_others_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\u{202e}c\n"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
        assert_eq!(clean("grüße ✓"), "grüße ✓");
    }

    #[test]
    fn the_locale_decides_by_precedence() {
        let of = |all: &'static str, lang: &'static str| {
            locale_is_utf8(|name| match name {
                "LC_ALL" => Some(all.to_owned()),
                "LANG" => Some(lang.to_owned()),
                _ => None,
            })
        };
        assert!(of("", "en_US.UTF-8"));
        assert!(of("C.utf8", "C"));
        assert!(!of("C", "en_US.UTF-8"));
        assert!(!of("", ""));
    }
}
