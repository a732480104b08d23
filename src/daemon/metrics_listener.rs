//! `GET /metrics` over TCP, for Prometheus. Off unless an address is configured.
//!
//! Whoever reaches the address may read, so nobody may keep others from it: connections are few and short, and where there
//! are too many, one that has asked nothing makes room ([`Readers`]). On loopback, a page of a browser on this host whose
//! name was made to lead here (DNS rebinding) is told apart by that name ([`is_for_us`]).

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::control_socket::{Requests, metrics_text};
use super::now;
use super::reading::process_reading;
use crate::api::{Error, ErrorCode, HealthEntry};
use crate::metrics::{self, ServerCounters, ServerReading};
use crate::time::Time;

/// Connections at a time; one more takes the place of another. Prometheus makes one.
const CONNECTIONS: usize = 16;
/// How long a client may take for its request's head. Prometheus sends it at once.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
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
        let task = tokio::spawn(accept(listener, source, address.ip().is_loopback()));
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

async fn accept(listener: TcpListener, source: Source, is_local: bool) {
    let mut readers = Readers::default();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok((stream, address)) => (stream, address.ip()),
            Err(error) => {
                tracing::warn!(%error, "a reader of metrics could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        readers.make_room();
        let has_asked = Arc::new(AtomicBool::new(false));
        let serving = serve(stream, source.clone(), is_local, Arc::clone(&has_asked));
        let task = tokio::spawn(async move {
            // Who is too slow, or breaks off, has only itself to blame.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serving).await;
        });
        readers.0.push(Reader { from: network(from), has_asked, task });
        // Its request may be there already, and is looked at before another one can take its place.
        tokio::task::yield_now().await;
    }
}

/// Who is being served, the oldest first.
#[derive(Default)]
struct Readers(Vec<Reader>);

struct Reader {
    from: IpAddr,
    has_asked: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Readers {
    /// Ends one connection if there are [`CONNECTIONS`]: of those who have the most, the oldest that has asked nothing, or
    /// else the oldest.
    fn make_room(&mut self) {
        self.0.retain(|reader| !reader.task.is_finished());
        if self.0.len() < CONNECTIONS {
            return;
        }
        let most = self.0.iter().map(|reader| self.count(reader.from)).max();
        let candidates = self.0.iter().enumerate().filter(|(_, reader)| Some(self.count(reader.from)) == most);
        let leaves = candidates.min_by_key(|(age, reader)| (reader.has_asked.load(Ordering::Relaxed), *age));
        if let Some((index, _)) = leaves {
            let Reader { from, task, .. } = self.0.remove(index);
            task.abort();
            tracing::debug!(%from, "a reader of metrics made room for another");
        }
    }

    fn count(&self, from: IpAddr) -> usize {
        self.0.iter().filter(|reader| reader.from == from).count()
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.0.iter().for_each(|reader| reader.task.abort());
    }
}

/// Whom an address belongs to: of IPv6, a host has 64 bits to choose from.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

async fn serve(
    stream: TcpStream,
    source: Source,
    is_local: bool,
    has_asked: Arc<AtomicBool>,
) -> Result<(), hyper::Error> {
    let service = service_fn(|request| {
        has_asked.store(true, Ordering::Relaxed);
        let source = source.clone();
        async move { Ok::<_, Infallible>(answer(&request, &source, is_local).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// Whether the request names a host that cannot but be this one: `localhost`, or an address. Any other name may be
/// somebody's who made it lead to loopback, so that a browser takes what is read here for his.
fn is_for_us(request: &Request<Incoming>) -> bool {
    let named = request.headers().get_all(HOST).iter().map(|value| value.to_str().ok());
    let mut named = named.chain(request.uri().authority().map(|authority| Some(authority.as_str())));
    named.all(|host| host.is_some_and(is_localhost_or_address))
}

fn is_localhost_or_address(host: &str) -> bool {
    // The port is whatever leads here.
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) && !name.ends_with(':') => name,
        _ => host,
    };
    let v6 = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost")
        || v6.is_some_and(|v6| v6.parse::<Ipv6Addr>().is_ok())
        || name.parse::<Ipv4Addr>().is_ok()
}

async fn answer(request: &Request<Incoming>, source: &Source, is_local: bool) -> Response<Full<Bytes>> {
    let (status, kind, text) = if is_local && !is_for_us(request) {
        let text = "on loopback, ask for localhost or an address, not for another name\n".to_owned();
        (StatusCode::MISDIRECTED_REQUEST, "text/plain", text)
    } else if request.uri().path() != "/metrics" {
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
