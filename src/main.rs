//! The `agentnet` program.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    agentnet::cli::main(std::env::args_os())
}
