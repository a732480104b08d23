//! HTTP over the control socket.
//!
//! One connection per request: the socket is local, and a command makes few.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{Global, load};
use crate::api::{Error, ErrorCode, ErrorDocument};

/// How long an agent may take to answer; it only looks into its memory.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer taken, bytes: a status with tens of thousands of peers.
const MAX_ANSWER: usize = 64 << 20;

/// A client of one agent.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
    flags: String,
    timeout: Duration,
}

impl Client {
    /// A client of the agent that the global flags, the environment or the configuration file name.
    ///
    /// # Errors
    /// The socket cannot be told.
    pub(super) fn new(global: &Global) -> Result<Self, Error> {
        let target = load::target(global)?;
        Ok(Self { socket: target.socket, flags: target.flags, timeout: TIMEOUT })
    }

    /// A client of the agent on `socket`.
    pub(super) fn on(socket: PathBuf, flags: String) -> Self {
        Self { socket, flags, timeout: TIMEOUT }
    }

    /// The same client, with another patience.
    pub(super) fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The control socket.
    pub(super) fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Asks for a document.
    ///
    /// # Errors
    /// What the agent says, or why it cannot be asked.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        decode(&self.exchange(Method::GET, path, Bytes::new()).await?)
    }

    /// Asks for a text.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) async fn get_text(&self, path: &str) -> Result<String, Error> {
        let text = self.exchange(Method::GET, path, Bytes::new()).await?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Hands over a document and takes the answer.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T, Error> {
        let body = serde_json::to_vec(body).map_err(|error| internal(&error.to_string()))?;
        decode(&self.exchange(Method::POST, path, body.into()).await?)
    }

    /// Hands over nothing and ignores what the answer holds.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) async fn post_nothing(&self, path: &str) -> Result<(), Error> {
        self.exchange(Method::POST, path, Bytes::new()).await.map(|_| ())
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, Error> {
        match tokio::time::timeout(self.timeout, self.exchange_untimed(method, path, body)).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(
                ErrorCode::TimedOut,
                format!("the agent on {} did not answer within {:?}", self.socket.display(), self.timeout),
                "look at its log; `agentnet down` and `sudo agentnet up` start it anew",
            )),
        }
    }

    async fn exchange_untimed(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, Error> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.cannot_connect(&error))?;
        let broken = |error: hyper::Error| self.broken(&error.to_string());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| internal(&error.to_string()))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| self.broken(&error.to_string()))?.to_bytes();
        driver.abort();
        if status.is_success() { Ok(body) } else { Err(refused(status, &body)) }
    }

    fn cannot_connect(&self, error: &std::io::Error) -> Error {
        let socket = self.socket.display();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Error::new(
                ErrorCode::NoDaemon,
                format!("no agent answers on {socket}"),
                format!("start it: `sudo agentnet {}up`", self.flags),
            ),
            ErrorKind::PermissionDenied => Error::new(
                ErrorCode::NotPermitted,
                format!("the control socket {socket} may not be opened by this user"),
                "run the command with sudo, or join the group agentnet",
            ),
            _ => Error::new(
                ErrorCode::NoDaemon,
                format!("the control socket {socket} cannot be opened: {error}"),
                "name the agent's socket with --socket or its state directory with --state-dir",
            ),
        }
    }

    fn broken(&self, why: &str) -> Error {
        Error::new(
            ErrorCode::NoDaemon,
            format!("the agent on {} ended the conversation: {why}", self.socket.display()),
            "it may just have stopped; see `agentnet status`",
        )
    }
}

/// Runs a conversation with an agent to its end.
///
/// # Errors
/// Those of `conversation`, or that the process lacks the means for it.
pub(super) fn block_on<T, E: From<Error>>(conversation: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| internal(&format!("the system gives no event queue: {error}")))?;
    runtime.block_on(conversation)
}

/// `text` as a value in a query (RFC 3986 section 2.3: everything but unreserved characters is escaped).
pub(super) fn query_value(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| {
        Error::new(
            ErrorCode::Internal,
            format!("the agent's answer is not understood: {error}"),
            "the running agent may be of another version; restart it with `agentnet down` and `sudo agentnet up`",
        )
    })
}

fn refused(status: StatusCode, body: &[u8]) -> Error {
    match serde_json::from_slice::<ErrorDocument>(body) {
        Ok(document) => document.error,
        Err(_) if status == StatusCode::NOT_FOUND => Error::new(
            ErrorCode::NotAvailable,
            "the running agent does not know this command",
            "it may be of an older version; restart it with `agentnet down` and `sudo agentnet up`",
        ),
        Err(_) => internal(&format!("the agent answered with HTTP status {status}")),
    }
}

fn internal(message: &str) -> Error {
    Error::new(ErrorCode::Internal, message, "this is a defect; please report it with the agent's log")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::api::TicketDocument;

    /// Answers one request with `answer` and gives what was asked.
    async fn conversation(answer: &'static str) -> (Result<TicketDocument, Error>, String) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        let client = Client::on(socket, String::new()).with_timeout(Duration::from_secs(5));
        let result = client.get("/v1/ticket").await;
        (result, server.await.unwrap())
    }

    #[test]
    fn a_document_is_asked_for_and_read() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{\"ticket\":\"t\"}";
        let (result, asked) = block_on(async { Ok::<_, Error>(conversation(answer).await) }).unwrap();
        assert_eq!(result.unwrap().ticket, "t");
        assert!(asked.starts_with("GET /v1/ticket HTTP/1.1\r\n"), "{asked}");
    }

    #[test]
    fn the_agents_own_error_is_passed_on() {
        let answer = "HTTP/1.1 409 Conflict\r\ncontent-length: 72\r\n\r\n\
                      {\"error\":{\"code\":\"not_trusted\",\"message\":\"no trust\",\"hint\":\"ask first\"}}";
        let (result, _) = block_on(async { Ok::<_, Error>(conversation(answer).await) }).unwrap();
        let error = result.unwrap_err();
        assert_eq!(error, Error::new(ErrorCode::NotTrusted, "no trust", "ask first"));
    }

    #[test]
    fn answers_that_make_no_sense_are_told_apart() {
        for (answer, code) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", ErrorCode::Internal),
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", ErrorCode::NotAvailable),
            ("HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", ErrorCode::Internal),
            ("HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{", ErrorCode::NoDaemon),
            ("", ErrorCode::NoDaemon),
        ] {
            let (result, _) = block_on(async { Ok::<_, Error>(conversation(answer).await) }).unwrap();
            assert_eq!(result.unwrap_err().code, code, "{answer:?}");
        }
    }

    #[test]
    fn silence_ends_in_a_timeout() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let client = Client::on(socket, String::new()).with_timeout(Duration::from_millis(50));
        let error = block_on(client.get::<TicketDocument>("/v1/ticket")).unwrap_err();
        assert_eq!(error.code, ErrorCode::TimedOut);
    }

    #[test]
    fn an_abandoned_socket_is_no_agent() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let client = Client::on(socket, "--state-dir /x ".to_owned());
        let error = block_on(client.get::<TicketDocument>("/v1/ticket")).unwrap_err();
        assert_eq!(error.code, ErrorCode::NoDaemon);
        assert_eq!(error.hint, "start it: `sudo agentnet --state-dir /x up`");
    }

    #[test]
    fn query_values_are_escaped() {
        assert_eq!(query_value("a-Z.9_~"), "a-Z.9_~");
        assert_eq!(query_value("fd61:6e74::1 &/é"), "fd61%3A6e74%3A%3A1%20%26%2F%C3%A9");
    }
}
