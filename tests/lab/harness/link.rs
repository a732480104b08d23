//! A link with properties: the kernel this lab must run on has no netem, so a program carries the frames.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::host::PYTHON;
use super::{Program, SOON, script};

/// What a link does to packets of one direction. ARP and neighbour discovery are delayed, never lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    /// Time on the way.
    pub(crate) delay: Duration,
    /// Most that `delay` varies, up or down, evenly. Keeps the order.
    pub(crate) jitter: Duration,
    /// Fraction that is lost, at random.
    pub(crate) loss: f64,
    /// Fraction that is held back for `reorder_by` while others overtake.
    pub(crate) reorder: f64,
    /// How long these are held back.
    pub(crate) reorder_by: Duration,
    /// Bits per second, frames with their Ethernet header.
    pub(crate) rate: Option<u64>,
    /// Bytes that may wait for `rate`; what comes on top is lost.
    pub(crate) queue: u32,
    /// IP packets of more bytes are lost without a word.
    pub(crate) drop_over: Option<u16>,
}

impl Shape {
    /// Passes everything at once.
    pub(crate) const CLEAR: Self = Self {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        loss: 0.0,
        reorder: 0.0,
        reorder_by: Duration::from_millis(5),
        rate: None,
        queue: 256 << 10,
        drop_over: None,
    };
    /// Passes nothing.
    pub(crate) const DEAD: Self = Self { loss: 1.0, ..Self::CLEAR };

    /// `milliseconds` from end to end, each way.
    pub(crate) const fn delay(milliseconds: u64) -> Self {
        Self { delay: Duration::from_millis(milliseconds), ..Self::CLEAR }
    }

    fn document(&self) -> Value {
        json!({
            "delay": self.delay.as_secs_f64(),
            "jitter": self.jitter.as_secs_f64(),
            "loss": self.loss,
            "reorder": self.reorder,
            "reorder_by": self.reorder_by.as_secs_f64(),
            "rate": self.rate.unwrap_or(0),
            "queue": self.queue,
            "drop_over": self.drop_over.unwrap_or(0),
        })
    }
}

/// Frames of one direction since the link was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Carried to the other end.
    pub(crate) passed: u64,
    /// Lost for `loss`.
    pub(crate) lost: u64,
    /// Lost for `drop_over`.
    pub(crate) too_big: u64,
    /// Lost because too much was waiting, or the other end took no more.
    pub(crate) queue_full: u64,
    /// Held back for `reorder`; they count as passed, too.
    pub(crate) held_back: u64,
}

/// A running link. Its two devices are gone when it is dropped. `up` is away from the host, `down` towards it.
pub(crate) struct Link {
    control: PathBuf,
    answers: UnixDatagram,
    own: PathBuf,
    _program: Program,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Link {
    /// Makes a device in each of two namespaces, given as namespace and name of the device, and joins them. The first
    /// is the end that `up` starts from. Control sockets are made in `directory`.
    pub(super) fn join(directory: &Path, first: (&str, &str), second: (&str, &str), shape: Shape) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let (control, own) =
            (directory.join(format!("link-{number}")), directory.join(format!("link-{number}-answers")));
        let mut command = Command::new(PYTHON);
        command.arg("-u").arg(script("link.py")).arg(&control);
        for (namespace, device) in [first, second] {
            command.arg(format!("{namespace}/{device}"));
        }
        let mut program = Program::spawn(&mut command);
        program.wait_for_text("ready");
        let answers = UnixDatagram::bind(&own).unwrap();
        answers.set_read_timeout(Some(SOON)).unwrap();
        let link = Self { control, answers, own, _program: program };
        link.set(shape);
        link
    }

    /// Changes both directions. Frames under way keep the delay they were given.
    pub(crate) fn set(&self, shape: Shape) {
        self.ask(&json!([shape.document(), shape.document()]));
    }

    /// Changes the directions apart.
    pub(crate) fn set_each(&self, up: Shape, down: Shape) {
        self.ask(&json!([up.document(), down.document()]));
    }

    /// What has happened so far, up and down.
    pub(crate) fn counts(&self) -> [Counts; 2] {
        let answer = self.ask(&Value::Null);
        [0, 1].map(|direction| {
            let count = |name: &str| answer[direction][name].as_u64().unwrap();
            Counts {
                passed: count("passed"),
                lost: count("lost"),
                too_big: count("too_big"),
                queue_full: count("queue_full"),
                held_back: count("held_back"),
            }
        })
    }

    /// The program answers after the change has taken effect.
    fn ask(&self, message: &Value) -> Value {
        self.answers.send_to(message.to_string().as_bytes(), &self.control).unwrap();
        let mut answer = [0; 4096];
        let length = self.answers.recv(&mut answer).unwrap_or_else(|error| panic!("the link does not answer: {error}"));
        serde_json::from_slice(&answer[..length]).unwrap()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.own);
        let _ = std::fs::remove_file(&self.control);
    }
}
