//! The lab benchmark: packets a second through real devices, against the kernel on the same devices.
#![forbid(unsafe_code)]

mod lab;

use clap::{Parser, Subcommand};

/// Benchmarks of fastpath in network namespaces of their own; run as root.
#[derive(Debug, Parser)]
#[command(name = "fastpath-bench", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measures packets a second at 60 bytes on veth, the dataplane and the kernel in turn.
    Lab(lab::Options),
    /// Removes what an interrupted run left.
    Clean,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Lab(options) => lab::run(&options),
        Command::Clean => {
            lab::clean();
            Ok(())
        }
    }
}
