//! The daemon's log: stderr, one line an event.
#![forbid(unsafe_code)]

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::LogLevel;

/// Starts logging to stderr at `level`, or as the environment's RUST_LOG says. Once per process.
pub fn start(level: LogLevel) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).from_env_lossy();
    // Their errors are ours to tell, each once and with what it means.
    let libraries = ["kube_client=off", "hyper_util=warn", "tower=warn", "rustls=warn"];
    let quiet = libraries.iter().filter_map(|l| l.parse().ok());
    let filter = quiet.fold(filter, EnvFilter::add_directive);
    // A second call keeps the first subscriber: tests start several daemons in a process.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}
