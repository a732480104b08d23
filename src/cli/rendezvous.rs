//! `agentnet rendezvous`

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::Global;
use super::load::host_config;
use super::output::{Failure, Output};
use crate::config::Origin;
use crate::daemon::{Log, Rendezvous, RendezvousOptions};

/// Where a server keeps its state when nothing else is said: apart from an agent on the same host.
const STATE_DIR: &str = "/var/lib/agentnet-rendezvous";
/// Bytes per second of one Mbit/s.
const BYTES_PER_MBIT: u32 = 125_000;

/// Run a rendezvous server in the foreground: others find and reach each other through it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The first line it prints is its REF, for --rendezvous of others. It needs no root. Its state is \
                        in /var/lib/agentnet-rendezvous unless --state-dir names another directory."
)]
pub(super) struct Args {
    /// Where to listen, once per IP version [default: all addresses, port 41641]; the port above is used too
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<SocketAddr>,
    /// Where others reach it, once per IP version [default: where it listens, or the host's addresses]
    #[arg(long, value_name = "ADDR:PORT")]
    public: Vec<SocketAddr>,
    /// Whether to relay for those who cannot reach each other directly
    #[arg(long, value_enum, default_value_t = Switch::On)]
    relay: Switch,
    /// What each client may send through the relay, Mbit/s, 1 to 34000 [default: no limit]
    #[arg(long, value_name = "MBIT", value_parser = clap::value_parser!(u32).range(1..=34_000))]
    relay_rate: Option<u32>,
    /// Where Prometheus reads metrics (GET /metrics), such as 127.0.0.1:9464 [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    metrics_listen: Option<SocketAddr>,
}

/// Something that is done or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    On,
    Off,
}

pub(super) fn run(args: &Args, global: &Global, out: &mut Output) -> Result<(), Failure> {
    let config = host_config(global)?;
    let log = Log::start(&config.log_level.value, config.log_format.value, None)?;
    let state_dir = match config.state_dir.origin {
        Origin::Default => PathBuf::from(STATE_DIR),
        _ => config.state_dir.value,
    };
    let options = RendezvousOptions {
        listen: args.listen.clone(),
        public: args.public.clone(),
        relay: args.relay == Switch::On,
        relay_rate: args.relay_rate.map(|mbit| mbit.saturating_mul(BYTES_PER_MBIT)),
        metrics_listen: args.metrics_listen,
        state_dir,
        confine: config.confine.value,
    };
    let server = Rendezvous::start(options, log)?;
    out.result(server.ready(), |page| writeln!(page, "{}", server.ready().reference))?;
    Ok(server.run()?)
}
