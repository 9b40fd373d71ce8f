//! The lab benchmark: packets a second through real devices, against the kernel on the same devices; and the control
//! plane at scale.
#![forbid(unsafe_code)]

mod lab;
mod scale;

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
    /// Measures start, memory and changes with many pods, services and policies.
    Scale(scale::Options),
    /// Removes what an interrupted run left.
    Clean,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Lab(options) => lab::run(&options),
        Command::Scale(options) => scale::run(&options),
        Command::Clean => {
            lab::clean();
            Ok(())
        }
    }
}
