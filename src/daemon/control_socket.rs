//! The control socket: HTTP and JSON over a Unix socket.
//!
//! Handlers hold nothing. Each request becomes a [`Request`] in a bounded queue to the event loop, which owns the agent.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use nix::sys::stat::{Mode, umask};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::listener::Listener;
use super::permission::Caller;
use crate::api::{Error, ErrorCode, ErrorDocument, ExitStatus, PeerBody, PingRequest, TrustRequestBody};

/// Requests that may wait for the event loop.
pub(super) const REQUEST_QUEUE: usize = 64;
/// Largest request body, bytes. The largest sensible one holds a ticket and a reason.
const MAX_BODY: usize = 16 * 1024;

/// What a caller wants.
#[derive(Debug)]
pub(super) enum Ask {
    Id,
    Status,
    Ticket,
    Peers,
    Config,
    Why(String),
    TrustList {
        pending_only: bool,
    },
    TrustRequest(TrustRequestBody),
    TrustApprove(String),
    TrustReject(String),
    TrustRevoke(String),
    Ping(PingRequest),
    Netcheck,
    Reload,
    Diagnostics,
    /// The answer is text.
    Metrics,
    Down,
}

/// A question and where its answer goes.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) ask: Ask,
    pub(super) answer: oneshot::Sender<Result<Value, Error>>,
}

pub(super) type Requests = mpsc::Sender<Request>;

/// The listening socket. Its file goes with it.
#[derive(Debug)]
pub(super) struct ControlSocket {
    path: PathBuf,
}

impl Connected<IncomingStream<'_, Listener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        stream.io().caller()
    }
}

impl ControlSocket {
    /// Listens, and serves until the runtime ends.
    pub(super) async fn serve(path: &Path, requests: Requests) -> Result<Self, Error> {
        if let Some(directory) = path.parent() {
            // Everybody may reach the socket; the kernel tells who they are.
            DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(|error| refused(path, &error))?;
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(Error::new(
                ErrorCode::SocketInUse,
                format!("another agent listens on {}", path.display()),
                "stop it with `agentnet down`, or give this one its own --socket",
            ));
        }
        // What a killed agent left behind. Anything but a socket is not ours to remove.
        if fs::symlink_metadata(path)
            .is_ok_and(|metadata| std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()))
        {
            fs::remove_file(path).map_err(|error| refused(path, &error))?;
        }
        let listener = bind_for_everybody(path).map_err(|error| refused(path, &error))?;
        let service = router(requests).into_make_service_with_connect_info::<Caller>();
        let listener = Listener::new(listener);
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, service).await {
                tracing::error!(%error, "the control socket failed");
            }
        });
        Ok(Self { path: path.to_owned() })
    }
}

/// The socket is made with its mode. Changing that afterwards, by path, would follow a link that who owns the directory
/// can put there.
fn bind_for_everybody(path: &Path) -> io::Result<UnixListener> {
    // The process has one thread yet, and the files it makes have modes of their own.
    let usual = umask(Mode::from_bits_truncate(0o111));
    let listener = UnixListener::bind(path);
    umask(usual);
    listener
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn router(requests: Requests) -> Router {
    Router::new()
        .route("/v1/id", get(|state| ask(state, Ask::Id)))
        .route("/v1/status", get(|state| ask(state, Ask::Status)))
        .route("/v1/ticket", get(|state| ask(state, Ask::Ticket)))
        .route("/v1/peers", get(|state| ask(state, Ask::Peers)))
        .route("/v1/config", get(|state| ask(state, Ask::Config)))
        .route("/v1/why", get(why))
        .route("/v1/netcheck", get(|state| ask(state, Ask::Netcheck)))
        .route("/v1/metrics", get(metrics))
        .route("/v1/trust/pending", get(|state| ask(state, Ask::TrustList { pending_only: true })))
        .route("/v1/trust/list", get(|state| ask(state, Ask::TrustList { pending_only: false })))
        .route("/v1/ping", post(|state, Body(body)| ask(state, Ask::Ping(body))))
        .route("/v1/trust/request", post(|state, caller, Body(body)| change(state, caller, Ask::TrustRequest(body))))
        .route("/v1/trust/approve", post(|s, c, Body(b): Body<PeerBody>| change(s, c, Ask::TrustApprove(b.peer))))
        .route("/v1/trust/reject", post(|s, c, Body(b): Body<PeerBody>| change(s, c, Ask::TrustReject(b.peer))))
        .route("/v1/trust/revoke", post(|s, c, Body(b): Body<PeerBody>| change(s, c, Ask::TrustRevoke(b.peer))))
        // What is logged is not for everybody.
        .route("/v1/diagnostics", get(|state, caller| change(state, caller, Ask::Diagnostics)))
        .route("/v1/reload", post(|state, caller| change(state, caller, Ask::Reload)))
        .route("/v1/down", post(|state, caller| change(state, caller, Ask::Down)))
        .fallback(|| async { Failure(usage("there is no such request")) })
        .method_not_allowed_fallback(|| async { Failure(usage("that request is made with another method")) })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(requests)
}

#[derive(Deserialize)]
struct WhyQuery {
    peer: String,
}

async fn why(state: State<Requests>, query: Result<Query<WhyQuery>, QueryRejection>) -> Result<Json<Value>, Failure> {
    let Query(query) = query.map_err(|error| Failure(usage(&error.body_text())))?;
    ask(state, Ask::Why(query.peer)).await
}

async fn metrics(State(requests): State<Requests>) -> Result<impl IntoResponse, Failure> {
    let text = metrics_text(&requests).await.map_err(Failure)?;
    Ok(([(CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], text))
}

/// What the agent counts, as Prometheus reads it.
pub(super) async fn metrics_text(requests: &Requests) -> Result<String, Error> {
    match put(requests, Ask::Metrics).await? {
        Value::String(text) => Ok(text),
        _ => Err(Error::new(ErrorCode::Internal, "the metrics are no text", "please report this")),
    }
}

/// A request that changes something.
async fn change(state: State<Requests>, caller: ConnectInfo<Caller>, request: Ask) -> Result<Json<Value>, Failure> {
    caller.0.require_change().await.map_err(Failure)?;
    ask(state, request).await
}

async fn ask(State(requests): State<Requests>, ask: Ask) -> Result<Json<Value>, Failure> {
    put(&requests, ask).await.map(Json).map_err(Failure)
}

/// Puts a question to the event loop and waits for its answer.
async fn put(requests: &Requests, ask: Ask) -> Result<Value, Error> {
    let (answer, answered) = oneshot::channel();
    // Waits while the queue is full; the caller's own time limit ends that.
    let stopping = || Error::new(ErrorCode::NoDaemon, "the agent is stopping", "start it: `sudo agentnet up`");
    requests.send(Request { ask, answer }).await.map_err(|_| stopping())?;
    answered.await.map_err(|_| stopping())?
}

/// A JSON body; what is wrong with it is told as an [`ErrorDocument`].
struct Body<T>(T);

impl<S: Send + Sync, T> FromRequest<S> for Body<T>
where
    Json<T>: FromRequest<S, Rejection = JsonRejection>,
{
    type Rejection = Failure;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Failure> {
        let Json(body) =
            Json::from_request(request, state).await.map_err(|error| Failure(usage(&error.body_text())))?;
        Ok(Self(body))
    }
}

struct Failure(Error);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.0.code.exit_status() {
            ExitStatus::Usage => StatusCode::BAD_REQUEST,
            ExitStatus::NoPermission | ExitStatus::Refused => StatusCode::FORBIDDEN,
            ExitStatus::NotFound => StatusCode::NOT_FOUND,
            ExitStatus::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            ExitStatus::NoDaemon => StatusCode::SERVICE_UNAVAILABLE,
            ExitStatus::Done | ExitStatus::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(ErrorDocument { error: self.0 })).into_response()
    }
}

fn usage(message: &str) -> Error {
    Error::new(ErrorCode::Usage, message, "the documentation lists the requests of the control socket")
}

fn refused(path: &Path, error: &io::Error) -> Error {
    Error::new(
        ErrorCode::SocketInUse,
        format!("the control socket {} cannot be created: {error}", path.display()),
        "name another path with --socket",
    )
}
