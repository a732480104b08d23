//! An agent that knows its answers by heart.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

pub(crate) const ID: &str = "47pjoycnsrfmxikm95jh13y88e8qnhzu5kungjpxyepgt7a8krpy";

/// One request, as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Method and path.
    pub(crate) line: String,
    pub(crate) body: String,
}

/// Status and body of an answer; [`None`] hangs up.
pub(crate) type Answer = Option<(u16, String)>;

/// A listening socket with a thread that answers on it until the test ends.
pub(crate) struct FakeAgent {
    _directory: TempDir,
    socket: PathBuf,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl FakeAgent {
    /// `answer` gets every request in order.
    pub(crate) fn start(mut answer: impl FnMut(&Asked) -> Answer + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let request = read(&stream);
                record.lock().unwrap().push(request.clone());
                if let Some((status, body)) = answer(&request) {
                    write(&stream, status, &body);
                }
            }
        });
        Self { _directory: directory, socket, asked }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Runs a command against this agent.
    pub(crate) fn run(&self, arguments: &[&str]) -> super::Outcome {
        super::agentnet(["--socket", self.socket.to_str().unwrap()].iter().chain(arguments))
    }
}

/// An error document, as an agent sends it.
pub(crate) fn error(code: &str) -> String {
    format!("{{\"error\":{{\"code\":\"{code}\",\"message\":\"the message\",\"hint\":\"the hint\"}}}}")
}

pub(crate) fn identity() -> String {
    format!(
        "{{\"id\":\"{ID}\",\"name\":\"build-7\",\"ipv6\":\"fd61:6e74::1\",\"ipv4\":\"100.64.0.17\",\
         \"did\":\"did:key:z6Mk\",\"ref\":null}}"
    )
}

pub(crate) fn status(pid: u32) -> String {
    format!(
        "{{\"self\":{{\"id\":\"{ID}\",\"name\":\"build-7\",\"ipv6\":\"fd61:6e74::1\",\"ipv4\":\"100.64.0.17\",\
         \"version\":\"0.1.0\",\"uptime_s\":5,\"pid\":{pid},\"port\":41641}},\"interface\":{{\"name\":\"agentnet0\",\
         \"mtu\":1420,\"tx_packets\":0,\"rx_packets\":0,\"tx_bytes\":0,\"rx_bytes\":0}},\"rendezvous\":[],\
         \"peers\":[],\"health\":[],\"drops\":{{}}}}"
    )
}

fn read(stream: &UnixStream) -> Asked {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).unwrap();
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap() == 0 || line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let line = first.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    Asked { line, body: String::from_utf8(body).unwrap() }
}

fn write(mut stream: &UnixStream, status: u16, body: &str) {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\ncontent-type: application/json\r\n\r\n");
    // The command may have been ended by the test.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
}
