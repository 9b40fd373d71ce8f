//! The command line: what can be asked, how it is shown, how it ends.
//!
//! | Module | Holds |
//! |---|---|
//! | `args` | commands and options, and what `--help` teaches |
//! | `show` | answers of the daemon as tables |
//! | `explain` | `explain` |
//! | `policy` | `policy lint` |
//! | `doctor` | `doctor`, `install-cni` |
//! | `tune` | `tune` |
//! | `config` | `config check`, `config reference` |
#![forbid(unsafe_code)]

mod args;
mod config;
mod doctor;
mod explain;
mod policy;
mod show;
mod table;
mod tune;

#[cfg(test)]
mod tests;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::api::types::{Status, Version};
use crate::api::{Client, ClientError, Request};
use crate::config::Config;
use crate::logging;
pub use args::Cli;
use args::{Command, ConfigCommand, Output, PolicyCommand, Show};

/// Asked for, but it failed or is degraded.
const FAILED: u8 = 1;
/// The daemon cannot be reached (2 is clap's for a wrong command line).
const UNREACHABLE: u8 = 3;

/// Why a command ends without what was asked for.
#[derive(Debug)]
enum Failure {
    /// Said on stderr, in one line.
    Message(u8, String),
    /// The output says it already.
    Said(u8),
    /// Whoever reads our output has gone: nothing to say, and nobody to say it to.
    Closed,
}

impl From<ClientError> for Failure {
    fn from(e: ClientError) -> Self {
        let unreachable = matches!(e, ClientError::Unreachable { .. } | ClientError::Denied { .. });
        let code = if unreachable { UNREACHABLE } else { FAILED };
        Failure::Message(code, e.to_string())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(e: serde_json::Error) -> Self {
        Failure::Message(FAILED, format!("cannot be written as JSON: {e}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        match e.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::Closed,
            _ => Failure::Message(FAILED, format!("cannot write the output: {e}")),
        }
    }
}

/// Runs the command of this process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = std::io::stdout().lock();
    match run(cli, &mut out).and_then(|()| Ok(out.flush()?)) {
        Ok(()) | Err(Failure::Closed) => ExitCode::SUCCESS,
        Err(Failure::Said(code)) => ExitCode::from(code),
        Err(Failure::Message(code, message)) => {
            // Nothing is left to do when stderr is closed as well.
            let _ = writeln!(std::io::stderr(), "fastpath: {message}");
            ExitCode::from(code)
        }
    }
}

fn run(cli: Cli, out: &mut impl Write) -> Result<(), Failure> {
    let socket = cli.socket();
    match cli.command {
        Command::Run { config } => {
            let config = Config::load(&config).map_err(|e| Failure::Message(FAILED, e.to_string()))?;
            logging::start(config.daemon.log);
            crate::daemon::run(config).map_err(|e| Failure::Message(FAILED, format!("{e:#}")))
        }
        Command::Status => {
            let status: Status = Client::connect(&socket)?.ask(Request::Status)?;
            match cli.output {
                Output::Json => json(out, &status)?,
                Output::Table => out.write_all(show::status(&status).as_bytes())?,
            }
            if status.healthy() { Ok(()) } else { Err(Failure::Said(FAILED)) }
        }
        Command::Show { what } => {
            let mut client = Client::connect(&socket)?;
            let request = what.request();
            match cli.output {
                Output::Json => {
                    let value: serde_json::Value = client.ask(request)?;
                    json(out, &value)?;
                }
                Output::Table => {
                    let text = match what {
                        Show::Endpoints => show::endpoints(&client.ask::<Vec<_>>(request)?),
                        Show::Nodes => show::nodes(&client.ask::<Vec<_>>(request)?),
                        Show::Flows { .. } => show::flows(&client.ask(request)?),
                        Show::Routes => show::routes(&client.ask::<Vec<_>>(request)?),
                        Show::Neighbors => show::neighbors(&client.ask::<Vec<_>>(request)?),
                        Show::Drops { all } => show::drops(&client.ask::<Vec<_>>(request)?, all),
                        Show::Policies => show::policies(&client.ask::<Vec<_>>(request)?),
                        Show::Services => show::services(&client.ask::<Vec<_>>(request)?),
                        Show::Ports => show::ports(&client.ask(request)?),
                        Show::Runtime => show::runtime(&client.ask(request)?),
                    };
                    out.write_all(text.as_bytes())?;
                }
            }
            Ok(())
        }
        Command::Explain(args) => explain::run(&args, &socket, cli.output, out),
        Command::Policy { command: PolicyCommand::Lint(args) } => policy::lint(&args, cli.output, out),
        Command::Config { command: ConfigCommand::Check { file } } => config::check(&file, cli.output, out),
        Command::Config { command: ConfigCommand::Reference } => {
            Ok(out.write_all(crate::config::reference().as_bytes())?)
        }
        // With options beside it; alone it never comes here.
        Command::Cni => crate::cni::serve().then_some(()).ok_or(Failure::Said(FAILED)),
        Command::Doctor(args) => doctor::doctor(&args, cli.output, out),
        Command::Tune(args) => tune::tune(&args, cli.output, out),
        Command::InstallCni(args) => doctor::install_cni(&args, out),
        Command::Version => version(&socket, cli.output, out),
    }
}

/// This program's version, and the daemon's if one runs.
fn version(socket: &std::path::Path, output: Output, out: &mut impl Write) -> Result<(), Failure> {
    let own = Version::own();
    let daemon: Option<Version> = Client::connect(socket).and_then(|mut c| c.ask(Request::Version)).ok();
    match output {
        Output::Json => json(out, &serde_json::json!({ "client": own, "daemon": daemon }))?,
        Output::Table => {
            writeln!(out, "fastpath {}", own.version)?;
            if let Some(daemon) = daemon {
                writeln!(out, "daemon   {}", daemon.version)?;
            }
        }
    }
    Ok(())
}

fn json(out: &mut impl Write, value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::Message(FAILED, e.to_string()))?;
    Ok(writeln!(out, "{text}")?)
}
