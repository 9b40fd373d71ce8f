//! The daemon: follows the source and answers the API.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

use crate::api::server::{Answer, to_value};
use crate::api::types::{Endpoint, Node, Problem, Reach, Status, Sync, Version};
use crate::api::{ApiError, ErrorCode, Instance, Request, StateView, serve};
use crate::config::Config;
use crate::source::{DirectorySource, Update};

/// Runs the daemon until SIGINT or SIGTERM.
///
/// # Errors
/// It cannot start: the message says what is in the way.
pub fn run(config: Config) -> anyhow::Result<()> {
    let node = config.node_name()?;
    let missing = config.missing_cores().context("cannot read the CPU affinity mask")?;
    anyhow::ensure!(missing.is_empty(), "workers.cores: this process may not run on core {missing:?}");
    let mut instance = Instance::acquire(&config.daemon.state_dir)?;
    let source = DirectorySource::start(&config.source.path)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let listener = tokio::net::UnixListener::from_std(instance.listen()?)?;
        let view = View { node: node.clone(), started: Instant::now(), updates: source.updates() };
        info!(node, socket = %config.socket().display(), "running");
        tokio::select! {
            () = serve(listener, Arc::new(view)) => {}
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        info!("stopped");
        Ok(())
    })
}

/// What the API tells.
struct View {
    node: String,
    started: Instant,
    updates: watch::Receiver<Arc<Update>>,
}

impl StateView for View {
    fn answer(&self, request: Request) -> Answer<'_> {
        let update = self.updates.borrow().clone();
        let result = match request {
            Request::Version => to_value(&Version::own()),
            Request::Status => to_value(&self.status(&update)),
            Request::Endpoints => to_value(&self.endpoints(&update)),
            Request::Nodes => to_value(&self.nodes(&update)),
            _ => Err(ApiError::new(ErrorCode::NotReady, "no worker is running")),
        };
        Box::pin(std::future::ready(result))
    }
}

impl View {
    fn status(&self, update: &Update) -> Status {
        Status {
            version: Version::own().version,
            node: self.node.clone(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            last_sync: Some(Sync::from(update.loaded_at)),
            problems: update.problems.iter().map(Problem::from).collect(),
            degraded: vec!["no worker is running".to_owned()],
            ..Status::default()
        }
    }

    fn endpoints(&self, update: &Update) -> Vec<Endpoint> {
        let ours = |p: &&Arc<crate::model::Pod>| p.node.as_ref() == Some(&self.node) && !p.host_network;
        let pods = update.model.pods.values().filter(ours);
        pods.map(|p| Endpoint {
            namespace: p.name.namespace.clone(),
            pod: p.name.name.clone(),
            addresses: p.addresses.clone(),
            interface: p.interface.clone(),
            port: None,
            mac: p.mac.map(|m| m.to_string()),
            state: "not attached".to_owned(),
            worker: None,
        })
        .collect()
    }

    fn nodes(&self, update: &Update) -> Vec<Node> {
        let nodes = update.model.nodes.values();
        nodes
            .map(|n| Node {
                name: n.name.clone(),
                addresses: n.addresses.clone(),
                pod_cidrs: n.pod_cidrs.iter().map(ToString::to_string).collect(),
                reach: if n.name == self.node { Reach::Local } else { Reach::Unreachable },
                vtep: None,
                vtep_mac: None,
            })
            .collect()
    }
}
