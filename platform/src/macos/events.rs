//! The routing socket (route(4)) says that something changed; comparing two layouts says what.

use std::io::{self, Read};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::network::Network;
use crate::network::{EventSender, NetworkEvent};

/// One change comes as a burst of messages; reading the layout once per burst is enough.
const BURST: Duration = Duration::from_millis(200);

pub(super) fn subscribe(network: Network) -> io::Result<mpsc::Receiver<NetworkEvent>> {
    let socket = Socket::new(Domain::from(libc::PF_ROUTE), Type::RAW, None)?;
    socket.set_nonblocking(true)?;
    // SAFETY: the `AsyncFd` owns the socket, which is never replaced and closes its descriptor only when dropped.
    let socket = unsafe { AsyncFd::register(socket) }?;
    let (mut sender, receiver) = EventSender::new();
    tokio::spawn(async move {
        let mut known = network.layout().await.ok();
        loop {
            let changed = tokio::select! {
                changed = wait_for_messages(&socket) => changed,
                () = sender.closed() => break,
            };
            if changed.is_err() {
                break;
            }
            match (known.take(), network.layout().await.ok()) {
                (Some(before), Some(after)) => {
                    for event in before.changes_to(&after) {
                        sender.send(event);
                    }
                    known = Some(after);
                }
                // What changed cannot be said.
                (_, after) => {
                    known = after;
                    sender.send(NetworkEvent::Lagged);
                }
            }
        }
    });
    Ok(receiver)
}

/// Returns when messages have come, a burst's time after the first, all of them read.
async fn wait_for_messages(socket: &AsyncFd<Socket>) -> io::Result<()> {
    drop(socket.readable().await?);
    tokio::time::sleep(BURST).await;
    let mut guard = socket.readable().await?;
    let mut message = [0; 2_048];
    loop {
        match guard.try_io(|socket| read(socket.get_ref(), &mut message)) {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            // Messages were lost, which the comparison makes up for.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => return Ok(()),
        }
    }
}

fn read(mut socket: &Socket, message: &mut [u8]) -> io::Result<usize> {
    match socket.read(message)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        len => Ok(len),
    }
}
