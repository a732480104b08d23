//! Accepts local programs, so many at a time. Whoever may not change the agent must not be able to shut out who may.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::permission::Caller;

/// Connections of root and the agent's own user.
const OWNER_CONNECTIONS: usize = 128;
/// Connections of everybody else together; one more is closed at once.
const OTHER_CONNECTIONS: usize = 64;
/// After an error of accept(2), such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// A listening socket with a limit for each kind of caller.
pub(super) struct Listener {
    inner: UnixListener,
    owners: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

/// One connection. Its place is free again when it is dropped.
pub(super) struct Connection {
    stream: UnixStream,
    caller: Caller,
    _place: OwnedSemaphorePermit,
}

impl Listener {
    pub(super) fn new(inner: UnixListener) -> Self {
        let places = |n| Arc::new(Semaphore::new(n));
        Self { inner, owners: places(OWNER_CONNECTIONS), others: places(OTHER_CONNECTIONS) }
    }
}

impl Connection {
    /// Who is at the other end.
    pub(super) fn caller(&self) -> Caller {
        self.caller
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            let (stream, address) = match self.inner.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a local program could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let caller = Caller::from_credentials(stream.peer_cred().ok());
            let places = if caller.is_owner() { &self.owners } else { &self.others };
            if let Ok(place) = Arc::clone(places).try_acquire_owned() {
                return (Connection { stream, caller, _place: place }, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
