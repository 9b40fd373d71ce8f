//! The lab benchmark: packets a second and round trips through real devices, against peers on the same devices; the
//! control plane at scale; and the report of all benchmarks.
#![forbid(unsafe_code)]

mod lab;
mod plot;
mod results;
mod scale;

use std::process::{Command as Program, Stdio};

use anyhow::{Context as _, Result, ensure};
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
    /// Measures the dataplane and its peers in turn on veths.
    Lab(lab::Options),
    /// Measures settings of the configuration against one another, in turn.
    Keys(lab::keys::Options),
    /// Measures start, memory and changes with many pods, services and policies.
    Scale(scale::Options),
    /// Puts the results of all benchmarks together: latest.json, table.md, plots.
    Report(results::Options),
    /// Removes what an interrupted run left.
    Clean,
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Lab(options) => lab::run(&options),
        Command::Keys(options) => lab::keys::run(&options),
        Command::Scale(options) => scale::run(&options),
        Command::Report(options) => results::report(&options),
        Command::Clean => {
            lab::clean();
            Ok(())
        }
    }
}

/// Runs a program to its end; its standard output.
fn command(program: &str, args: &[&str]) -> Result<String> {
    let out = Program::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} does not start"))?;
    ensure!(
        out.status.success(),
        "{program} {}: {}: {}",
        args.join(" "),
        out.status,
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
