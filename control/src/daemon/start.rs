//! Start, main loop and end of the daemon.
#![forbid(unsafe_code)]

use anyhow::Context as _;
use fastpath::engine::{EngineConfig, Polling, WorkerConfig};
use fastpath::io::xsk::{self, BusyPoll, OpenConfig, Outbox, Umem};
use fastpath::snapshot::Settings;
use fastpath::tables::flow::{FlowConfig, Timeouts};
use fastpath_xdp::outbox::Sender;
use fastpath_xdp::{LoadConfig, ModeRequest, OnFailure, Redirect, abi_outbox};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch::Receiver;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::heartbeat::Heartbeat;
use super::view::Asker;
use super::web::{Server, Web};
use super::*;
use crate::api::Instance;
use crate::attach::AttachConfig;
use crate::compile::tables::SnatSettings;
use crate::config::{self, SnatPorts};
use crate::netdev::{Preparer, Watcher};
use crate::source::Source;

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start: state folder taken, source unreadable, memory, programs or workers refused.
pub fn run(config: Config) -> anyhow::Result<()> {
    let instance = Instance::acquire(&config.daemon.state_dir)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio runtime")?;
    runtime.block_on(serve(config, instance))
}

async fn serve(config: Config, mut instance: Instance) -> anyhow::Result<()> {
    // Listened for from the first moment: a stop that comes while starting must still restore devices.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let node = config.node_name()?;
    // Before any thread is started: all but the workers stay off their cores.
    let workers = workers(&config)?;
    stay_off(&workers).context("affinity mask")?;
    let source = Source::start(&config, &node).context("source")?;
    let mut updates = source.updates();
    // Before the first view, so that it is in it.
    let (mut host, problems) = super::host::open(&config);
    let started = Watcher::start().map_err(anyhow::Error::from).and_then(|watcher| {
        let mut net = watcher.subscribe();
        let view = net.borrow_and_update().clone();
        let known = (updates.borrow_and_update().clone(), source.state(), view);
        let daemon = start(config, node, known, &mut host, workers)?;
        Ok((watcher, net, daemon))
    });
    let (_watcher, mut net, mut daemon) = started.inspect_err(|_| {
        for e in host.take().map(HostPair::remove).unwrap_or_default() {
            tracing::warn!("{e}");
        }
    })?;
    daemon.start_problems.extend(problems);
    let (asker, mut requests) = Asker::new();
    let (web, mut web_questions) = Web::new();
    daemon.web = daemon.config.http.listen.map(|addr| Server::new(addr, web));
    daemon.start_web();
    let listener = tokio::net::UnixListener::from_std(instance.listen()?)?;
    let api = tokio::spawn(crate::api::serve(listener, Arc::new(asker)));
    daemon.learn(Arc::clone(&daemon.source));
    daemon.look_at_sockets();
    // No snapshot, and no sign of life to programs of an earlier run, before the source is known in full.
    let mut heartbeat = None;
    daemon.sync();
    daemon.begin(&mut heartbeat)?;
    tracing::info!(node = %daemon.node, generation = daemon.snapshot.generation, "running");

    let mut tick = interval(BEAT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut retry = interval(RETRY);
    retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut due: Option<tokio::time::Instant> = None;
    let mut last = tokio::time::Instant::now();
    loop {
        let mut dirty = false;
        let look_again = daemon.cni.look_again();
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = tick.tick() => {
                dirty = daemon.tick();
                daemon.tell(&source);
                daemon.refresh_health_ports();
            }
            _ = retry.tick() => {
                daemon.start_web();
                daemon.keep_local();
                dirty = !daemon.attach_problems.is_empty() || !daemon.kernel_problems.is_empty();
                dirty |= daemon.reload_endpoints();
                dirty |= daemon.look_at_sockets();
                dirty |= daemon.attacher.look_at_redirects();
                daemon.lost.get_mut().look();
            }
            Ok(()) = updates.changed() => {
                daemon.learn(updates.borrow_and_update().clone());
                dirty = true;
            }
            Ok(()) = net.changed() => {
                let view = daemon.cni.complete(net.borrow_and_update().clone());
                dirty = !view.forwarding_eq(&daemon.net);
                daemon.net = view;
            }
            Some(question) = requests.recv() => {
                let mut at_once = daemon.answer(question);
                while let Ok(question) = requests.try_recv() {
                    at_once |= daemon.answer(question);
                }
                if at_once {
                    // A pod's start waits for it.
                    due = None;
                    last = tokio::time::Instant::now();
                    daemon.sync();
                    daemon.begin(&mut heartbeat)?;
                }
            }
            () = tokio::time::sleep(look_again.unwrap_or_default()), if look_again.is_some() => daemon.cni_answer(),
            Some(question) = web_questions.recv() => daemon.answer_web(question),
            () = sleep_until(due.unwrap_or_else(tokio::time::Instant::now)), if due.is_some() => {
                due = None;
                last = tokio::time::Instant::now();
                daemon.sync();
                daemon.begin(&mut heartbeat)?;
            }
        }
        if dirty && due.is_none() {
            let now = tokio::time::Instant::now();
            if now < last + COALESCE {
                due = Some(last + COALESCE);
            } else {
                // At once: the runtime's timers are late by a millisecond.
                last = now;
                daemon.sync();
                daemon.begin(&mut heartbeat)?;
            }
        }
    }
    tracing::info!("stopping");
    source.tell(super::health::stopped());
    api.abort();
    daemon.stop();
    drop(heartbeat);
    Ok(())
}

fn start(
    config: Config,
    node: String,
    (update, source_state, net): (Arc<Update>, Receiver<SourceState>, Arc<NetView>),
    host: &mut Option<HostPair>,
    workers: Vec<WorkerConfig>,
) -> anyhow::Result<Daemon> {
    let missing = config.missing_cores().context("affinity mask")?;
    anyhow::ensure!(
        missing.is_empty(),
        "workers.cores: this process may not run on {missing:?} (they do not exist, or its cpuset lacks them)"
    );
    let memory = &config.memory;
    let groups = u32::try_from(workers.len())?;
    let wanted = memory.umem(groups);
    let several = wanted.division().0.saturating_mul(groups) > 1;
    let (umem, frames) = Umem::new(wanted)?;
    if memory.huge_pages && !umem.huge_pages() {
        tracing::warn!(
            "memory.huge_pages: none free (sysctl vm.nr_hugepages); packet buffers are in normal pages"
        );
    }
    if umem.arenas() == 1 && several {
        tracing::warn!(
            "memory.umem_frames: this process may not make a tap device (/dev/net/tun), so all packet buffers are one \
             UMEM: each pod takes more of the kernel's memory, and more time to attach"
        );
    }
    let redirect = Redirect::load(&LoadConfig {
        pin_dir: config.xdp.pin_dir.clone(),
        on_failure: match config.xdp.on_failure {
            config::OnFailure::Drop => OnFailure::Drop,
            config::OnFailure::Pass => OnFailure::Pass,
        },
        stale_after: config.xdp.stale_after,
        ..LoadConfig::default()
    })?;
    let preparer = Preparer::open(&config.daemon.state_dir)?;
    let flow = FlowConfig {
        entries_v4: usize::try_from(config.flow.entries_v4)?,
        entries_v6: usize::try_from(config.flow.entries_v6)?,
        timeouts: timeouts(&config.timeouts),
        seed: random_seed()?,
    };
    let engine = Engine::start(&EngineConfig { workers: workers.clone(), flow }, frames)?;
    let (senders, no_outbox) = match config.workers.transmit {
        config::Transmit::Together => give_outboxes(&engine),
        config::Transmit::Sockets => (Vec::new(), Vec::new()),
    };
    let (reserved, mut start_problems) = super::reserve::Reserved::open(&config);
    start_problems.extend(no_outbox);
    let (halt_poll, problem) = super::halt_poll::HaltPoll::open(&config);
    start_problems.extend(problem);
    let attacher =
        Attacher::new(engine, umem, redirect, preparer, senders, attach_config(&config, workers.len()));
    let resolver = Resolver::new()?;
    let endpoints = super::endpoints::Endpoints::open(&config.daemon.data_dir);
    Ok(Daemon {
        endpoints,
        cni: super::cni::Cni::new()?,
        source: Arc::clone(&update),
        cores: workers.iter().filter_map(|w| w.core).collect(),
        overlay: overlay(&config),
        reserved,
        halt_poll,
        start_problems,
        tables: Tables::new(&node, workers.len(), snat_settings(&config)),
        config,
        node,
        started: Instant::now(),
        attacher,
        resolver,
        host: host.take(),
        update,
        source_state,
        net,
        snapshot: Arc::new(Snapshot::default()),
        kept: compile::Kept::default(),
        applied: super::applied::Applied::default(),
        published: None,
        in_force: None,
        synced: None,
        remembered: BTreeMap::new(),
        asked: super::asked::Asked::default(),
        reaped: false,
        attach_problems: Vec::new(),
        compile_problems: Vec::new(),
        kernel_problems: Vec::new(),
        health_ports: super::health_ports::HealthPorts::default(),
        web: None,
        lost: std::cell::RefCell::new(super::lost::Lost::open()),
        gave_up: BTreeSet::new(),
        explainer: std::cell::RefCell::default(),
    })
}

/// One worker a configured core, or one on the last core this process may use.
fn workers(config: &Config) -> anyhow::Result<Vec<WorkerConfig>> {
    let polling = match config.workers.polling {
        crate::config::Polling::Busy => Polling::Busy,
        crate::config::Polling::Adaptive => Polling::Adaptive {
            spin: config.workers.idle_spin,
            spin_longest: config.workers.idle_spin_longest,
            sleep: config.workers.idle_sleep,
        },
    };
    let mut cores = config.workers.cores.clone();
    if cores.is_empty() {
        let mask = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).context("affinity mask")?;
        let last = (0..nix::sched::CpuSet::count()).rev().find(|c| mask.is_set(*c).unwrap_or(false));
        cores.push(last.context("this process may run on no core")?);
    }
    Ok(cores.into_iter().map(|core| WorkerConfig { core: Some(core), polling }).collect())
}

/// Leaves the cores of workers to them, if there are others: a thread that compiles for milliseconds would be given half of
/// a worker's core meanwhile.
fn stay_off(workers: &[WorkerConfig]) -> nix::Result<()> {
    let this = nix::unistd::Pid::from_raw(0);
    let mut cores = nix::sched::sched_getaffinity(this)?;
    for core in workers.iter().filter_map(|w| w.core) {
        // One that does not exist is refused later, by name.
        let _ = cores.unset(core);
    }
    let any = (0..nix::sched::CpuSet::count()).any(|core| cores.is_set(core).unwrap_or(false));
    if any { nix::sched::sched_setaffinity(this, &cores) } else { Ok(()) }
}

/// Has every worker send full vectors to veths in one call; without, its sockets do that, at more cost. Returns by what
/// they send, and why some do not.
fn give_outboxes(engine: &Engine) -> (Vec<Sender>, Vec<String>) {
    let give = |worker| -> anyhow::Result<Sender> {
        let mut sender = Sender::load()?;
        let mut outbox = Outbox::new(sender.program()?, sender.memory()).context("map the outbox")?;
        // A kernel that cannot do this says so at the first packet, which is for no device.
        outbox.set_lanes(1);
        outbox.put(0, u32::MAX >> 1, &[0; 60]);
        outbox.send().1.context("send by live frames (Linux 5.18)")?;
        engine.give_outbox(worker, outbox)?;
        Ok(sender)
    };
    let (mut senders, mut problems) = (Vec::new(), Vec::new());
    for worker in 0..engine.workers() {
        match give(worker) {
            Ok(sender) => senders.push(sender),
            Err(e) => {
                problems.push(format!("workers.transmit: worker {worker} sends by its sockets only: {e:#}"));
            }
        }
    }
    for problem in &problems {
        tracing::warn!("{problem}");
    }
    (senders, problems)
}

const _: () = assert!(
    abi_outbox::SLOTS == Outbox::SLOTS
        && abi_outbox::LONGEST == Outbox::LONGEST
        && size_of::<abi_outbox::Slot>() == Outbox::STRIDE
);

fn attach_config(config: &Config, workers: usize) -> AttachConfig {
    let frames = usize::try_from(config.memory.frames_per_worker).unwrap_or(0).saturating_mul(workers);
    AttachConfig {
        frames,
        mode: match config.xdp.mode {
            config::XdpMode::Auto => ModeRequest::Auto,
            config::XdpMode::Native => ModeRequest::Native,
            config::XdpMode::Generic => ModeRequest::Generic,
        },
        socket: OpenConfig {
            mode: match config.xdp.zero_copy {
                config::ZeroCopy::Auto => xsk::Mode::Auto,
                config::ZeroCopy::Off => xsk::Mode::Copy,
            },
            rx_ring: config.memory.rx_ring,
            tx_ring: config.memory.tx_ring,
            busy_poll: (!config.workers.busy_poll.is_zero()).then(|| BusyPoll {
                microseconds: u32::try_from(config.workers.busy_poll.as_micros()).unwrap_or(u32::MAX),
                budget: config.workers.busy_poll_budget,
            }),
            ..OpenConfig::default()
        },
        frame_size: config.memory.frame_size,
    }
}

fn overlay(config: &Config) -> Overlay {
    Overlay {
        encap: config.overlay.encap,
        outer_v6: config.overlay.family == config::Family::Ipv6,
        settings: Settings {
            vni: config.overlay.vni,
            vxlan_port: config.overlay.port,
            outer_udp6_checksum: config.overlay.udp6_checksum,
            tcp_pickup: config.flow.tcp_pickup == config::TcpPickup::Allow,
            reject_denied: config.policy.deny == config::Deny::Reject,
            icmp_rate: config.icmp.errors_per_second,
        },
    }
}

fn snat_settings(config: &Config) -> SnatSettings {
    let SnatPorts { first, last } = config.snat.port_range;
    SnatSettings {
        outgoing: config.snat.enabled,
        ports: (first, last),
        inside: config.services.cidrs.iter().chain(&config.snat.exempt_cidrs).copied().collect(),
    }
}

fn timeouts(t: &config::Timeouts) -> Timeouts {
    Timeouts {
        tcp_syn: t.tcp_syn,
        tcp_established: t.tcp_established,
        tcp_fin: t.tcp_fin,
        tcp_rst: t.tcp_rst,
        udp: t.udp,
        icmp: t.icmp,
        other: t.other,
    }
}

/// Unpredictable from outside, so that nobody can aim at one bucket of the flow table.
fn random_seed() -> anyhow::Result<u64> {
    let mut bytes = [0u8; 8];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").context("/dev/urandom")?, &mut bytes)
        .context("/dev/urandom")?;
    Ok(u64::from_ne_bytes(bytes))
}

impl Daemon {
    /// Starts the heartbeat once there is something to forward by.
    fn begin(&mut self, heartbeat: &mut Option<Heartbeat>) -> anyhow::Result<()> {
        if heartbeat.is_none() && self.synced.is_some() {
            let heart = self.attacher.redirect.take_heartbeat().context("the heartbeat is taken")?;
            let pulse = self.attacher.engine.pulse();
            *heartbeat = Some(Heartbeat::start(heart, pulse).context("heartbeat thread")?);
        }
        Ok(())
    }

    /// Leaves the kernel as it was found.
    fn stop(mut self) {
        for e in self.resolver.release_all() {
            tracing::warn!("{e}");
        }
        if let Err(e) = self.reserved.release() {
            tracing::warn!("{e}");
        }
        if let Err(e) = self.halt_poll.release() {
            tracing::warn!("{e}");
        }
        for problem in self.attacher.shutdown() {
            tracing::warn!("{problem}");
        }
        for e in self.host.map(HostPair::remove).unwrap_or_default() {
            tracing::warn!("{e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_what_the_file_says() {
        let text = "
            [policy]
            deny = \"reject\"
            [services]
            cidrs = [\"10.96.0.0/12\"]
            [snat]
            enabled = false
            port_range = \"50000-50100\"
            exempt_cidrs = [\"203.0.113.0/24\"]
        ";
        let config = Config::parse(text).unwrap();
        assert!(overlay(&config).settings.reject_denied);
        let inside = ["10.96.0.0/12", "203.0.113.0/24"].map(|n| n.parse().unwrap()).to_vec();
        let want = SnatSettings { outgoing: false, ports: (50_000, 50_100), inside };
        assert_eq!(snat_settings(&config), want);
        let default = Config::default();
        assert!(!overlay(&default).settings.reject_denied);
        let want = SnatSettings { outgoing: true, ports: (40_000, 56_383), inside: Vec::new() };
        assert_eq!(snat_settings(&default), want);
    }
}
