//! `GET /metrics` over TCP, for Prometheus. Off unless an address is configured.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::control_socket::{Requests, metrics_text};
use super::now;
use super::reading::process_reading;
use crate::api::{Error, ErrorCode, HealthEntry};
use crate::metrics::{self, ServerCounters, ServerReading};
use crate::time::Time;

/// Connections at a time; one more is closed at once. Prometheus makes one.
const CONNECTIONS: usize = 8;
/// How long a client may take for its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last, the answer included.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest head of a request, bytes; the least that the HTTP library takes.
const MAX_HEAD: usize = 8192;
/// After an error of accept(2), such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Where the text comes from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// An agent's event loop.
    Agent(Requests),
    /// A rendezvous server's counters, and when it started.
    Server(Arc<ServerCounters>, Time),
}

/// A socket that listens; nobody is answered yet.
pub(super) struct MetricsSocket {
    listener: StdListener,
    address: SocketAddr,
}

/// Answers until it is dropped.
#[derive(Debug)]
pub(super) struct MetricsListener {
    #[cfg(test)]
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl MetricsSocket {
    /// Takes the address.
    pub(super) fn bind(wanted: SocketAddr) -> Result<Self, Error> {
        let bound = StdListener::bind(wanted).and_then(|listener| {
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        });
        bound.map_err(|error| refused(wanted, &error))
    }

    /// Answers from here on. To be called on the runtime.
    pub(super) fn serve(self, source: Source) -> Result<MetricsListener, Error> {
        let Self { listener, address } = self;
        let listener = TcpListener::from_std(listener).map_err(|error| refused(address, &error))?;
        if address.ip().is_loopback() {
            tracing::info!(%address, "metrics are served");
        } else {
            tracing::warn!(%address, "metrics are served to everybody who reaches that address");
        }
        let task = tokio::spawn(accept(listener, source));
        Ok(MetricsListener {
            #[cfg(test)]
            address,
            task,
        })
    }
}

/// An agent's listener as configured, or why there is none. It is made before the agent gives up the right to listen, and
/// stays as long as the agent.
pub(super) struct AgentMetrics {
    _listener: Option<MetricsListener>,
    failed: Option<Error>,
}

impl AgentMetrics {
    /// Listens there, or nowhere. The agent is asked by `requests`. An agent whose metrics nobody can read is still an
    /// agent.
    pub(super) fn listen(requests: Requests, wanted: Option<SocketAddr>) -> Self {
        let listening = wanted.map(|address| MetricsSocket::bind(address)?.serve(Source::Agent(requests)));
        match listening.transpose() {
            Ok(listener) => Self { _listener: listener, failed: None },
            Err(error) => {
                tracing::warn!(%error, "metrics are not served");
                Self { _listener: None, failed: Some(error) }
            }
        }
    }

    /// What is wrong with it.
    pub(super) fn health(&self) -> Option<HealthEntry> {
        let Error { message, hint, .. } = self.failed.clone()?;
        Some(HealthEntry { code: "metrics_not_served".to_owned(), message, hint })
    }
}

impl MetricsListener {
    /// Where it listens.
    #[cfg(test)]
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Source {
    async fn text(&self) -> Result<String, Error> {
        match self {
            Self::Agent(requests) => metrics_text(requests).await,
            Self::Server(counters, started) => {
                let process = process_reading(now().time.since(*started));
                Ok(ServerReading { process, counters: Arc::clone(counters) }.text())
            }
        }
    }
}

async fn accept(listener: TcpListener, source: Source) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a reader of metrics could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let source = source.clone();
        tokio::spawn(async move {
            // Who is too slow, or breaks off, has only itself to blame.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serve(stream, source)).await;
            drop(place);
        });
    }
}

async fn serve(stream: TcpStream, source: Source) -> Result<(), hyper::Error> {
    let service = service_fn(|request| {
        let source = source.clone();
        async move { Ok::<_, Infallible>(answer(&request, &source).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer(request: &Request<Incoming>, source: &Source) -> Response<Full<Bytes>> {
    let (status, kind, text) = if request.uri().path() != "/metrics" {
        (StatusCode::NOT_FOUND, "text/plain", "there is nothing but /metrics\n".to_owned())
    } else if request.method() != Method::GET {
        (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "metrics can only be read: GET\n".to_owned())
    } else {
        match source.text().await {
            Ok(text) => (StatusCode::OK, metrics::CONTENT_TYPE, text),
            Err(error) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{}\n", error.message)),
        }
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
    }
    response
}

fn refused(address: SocketAddr, error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::AddrInUse => ErrorCode::PortInUse,
        io::ErrorKind::AddrNotAvailable => ErrorCode::AddressUnavailable,
        io::ErrorKind::PermissionDenied => ErrorCode::NotRoot,
        _ => ErrorCode::Internal,
    };
    Error::new(
        code,
        format!("metrics cannot be served at {address}: {error}"),
        "name another address and port with metrics_listen (--metrics-listen), or `off`",
    )
}

#[cfg(test)]
mod tests;
