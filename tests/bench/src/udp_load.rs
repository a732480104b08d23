//! A UDP load and its sink: how many datagrams a second pass, and how many are lost.
//!
//! ```text
//! udp-load sink ADDRESS:PORT            prints "ready", then, half a second after the last datagram, how many came
//! udp-load source ADDRESS:PORT --rate N --size BYTES --seconds S    prints how many it sent
//! ```
//!
//! Both use one system call for many datagrams, so that they cost less than what they measure.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a load runs in real time")]

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};

/// Datagrams in one system call.
const BATCH: usize = 64;
/// The longest datagram that is received whole, bytes.
const LONGEST: usize = 2048;
/// Receive buffer that is asked for, bytes: the sink must not be what loses.
const RECEIVE_BUFFER: usize = 16 << 20;
/// So long after the last datagram it is over.
const SILENCE: Duration = Duration::from_millis(500);
/// How long the sink waits for the first.
const PATIENCE: Duration = Duration::from_secs(10);
/// The source sleeps for so long when it is ahead.
const PACE: Duration = Duration::from_micros(200);

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Counts what comes.
    Sink { address: SocketAddr },
    /// Sends at a steady rate.
    Source {
        to: SocketAddr,
        /// Datagrams a second.
        #[arg(long)]
        rate: u64,
        /// Payload of each, bytes.
        #[arg(long)]
        size: usize,
        /// For how long.
        #[arg(long)]
        seconds: f64,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().role {
        Role::Sink { address } => sink(address),
        Role::Source { to, rate, size, seconds } => source(to, rate, size, Duration::from_secs_f64(seconds)),
    };
    match done {
        Ok(count) => {
            println!("{count}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn sink(address: SocketAddr) -> std::io::Result<u64> {
    let socket = UdpSocket::bind(address)?;
    // Above the system's limit this needs a privilege; what is granted is used.
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER);
    println!("ready");
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffers = vec![[0_u8; LONGEST]; BATCH];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut count = 0_u64;
    loop {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers.iter_mut().map(|one| [IoSliceMut::new(one)]).collect();
        match recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None) {
            Ok(received) => {
                if count == 0 {
                    socket.set_read_timeout(Some(SILENCE))?;
                }
                count += received.count() as u64;
            }
            Err(Errno::EAGAIN) => return Ok(count),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn source(to: SocketAddr, rate: u64, size: usize, duration: Duration) -> std::io::Result<u64> {
    let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    let payload = vec![0x5a_u8; size];
    let slices: Vec<[IoSlice<'_>; 1]> = (0..BATCH).map(|_| [IoSlice::new(&payload)]).collect();
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let nowhere: Vec<Option<SockaddrStorage>> = vec![None; BATCH];
    let (start, mut sent) = (Instant::now(), 0_u64);
    while start.elapsed() < duration {
        let due = (start.elapsed().as_secs_f64() * rate as f64) as u64;
        let count = due.saturating_sub(sent).min(BATCH as u64) as usize;
        if count == 0 {
            std::thread::sleep(PACE);
            continue;
        }
        match sendmmsg(socket.as_raw_fd(), &mut headers, &slices[..count], &nowhere[..count], [], MsgFlags::empty()) {
            Ok(results) => sent += results.count() as u64,
            // Nobody listens any more, or the queue is full: these count as lost.
            Err(Errno::ECONNREFUSED | Errno::ENOBUFS | Errno::EAGAIN) => sent += count as u64,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(sent)
}
