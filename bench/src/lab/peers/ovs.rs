//! Open vSwitch's userspace datapath with ports of type `afxdp`, one forwarding core; sockets and database of its own.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result};

use super::super::topology::Topology;
use super::process::{Processes, installed};
use crate::command;

const PACKAGE: &str = "openvswitch-switch-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// Forwards from the sender's device to the first pod's.
pub(super) fn start(topology: &Topology, conntrack: bool) -> Result<Processes> {
    let dir = topology.dir.join("ovs");
    std::fs::create_dir_all(&dir)?;
    let text = |name: &str| {
        let path = dir.join(name);
        path.to_str().map(str::to_owned).context("a path that is no text")
    };
    let program = |name| -> Result<String> {
        let path = installed(name, PACKAGE)?;
        path.to_str().map(str::to_owned).context("a path that is no text")
    };
    let (database, socket) = (text("conf.db")?, text("db.sock")?);
    // A database of an earlier turn would bring its ports back.
    let _ = std::fs::remove_file(&database);
    command(&program("ovsdb-tool")?, &["create", &database, SCHEMA])?;
    let mut processes = Processes::default();
    let home = [("OVS_RUNDIR", dir.as_path()), ("OVS_LOGDIR", dir.as_path()), ("OVS_DBDIR", dir.as_path())];
    let (remote, unixctl) = (format!("--remote=punix:{socket}"), format!("--unixctl={}", text("db.ctl")?));
    let server = program("ovsdb-server")?;
    let log = dir.join("ovsdb.log");
    processes.start(topology, &[&server, &database, &remote, &unixctl], &home, &log)?;
    processes.wait_until("ovsdb-server", &log, || dir.join("db.sock").exists())?;

    let db = format!("--db=unix:{socket}");
    let vsctl = program("ovs-vsctl")?;
    command(&vsctl, &[&db, "--no-wait", "init"])?;
    command(&vsctl, &[&db, "--no-wait", "set", "Open_vSwitch", ".", "other_config:pmd-cpu-mask=0x2"])?;
    let (switch, log) = (program("ovs-vswitchd")?, dir.join("vswitchd.log"));
    let (control, unix) = (text("vs.ctl")?, format!("unix:{socket}"));
    let unixctl = format!("--unixctl={control}");
    processes.start(topology, &[&switch, &unix, &unixctl], &home, &log)?;
    processes.wait_until("ovs-vswitchd", &log, || dir.join("vs.ctl").exists())?;

    let t = "--timeout=20";
    command(&vsctl, &[&db, t, "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"])?;
    for (port, number) in [("fp-a", "ofport_request=1"), ("fp0", "ofport_request=2")] {
        #[rustfmt::skip]
        command(&vsctl, &[
            &db, t, "add-port", "br0", port, "--", "set", "interface", port, "type=afxdp", "options:n_rxq=1",
            "options:xdp-mode=native", number,
        ])?;
        let error = command(&vsctl, &[&db, "get", "interface", port, "error"])?;
        anyhow::ensure!(error.trim() == "[]", "OVS cannot open {port}: {}", error.trim());
    }
    let ofctl = program("ovs-ofctl")?;
    let bridge = format!("unix:{}", text("br0.mgmt")?);
    command(&ofctl, &["del-flows", &bridge])?;
    let flows: &[&str] = if conntrack {
        &[
            "table=0,in_port=1,ip,ct_state=-trk,actions=ct(table=1)",
            "table=1,in_port=1,ip,ct_state=+trk+new,actions=ct(commit),output:2",
            "table=1,in_port=1,ip,ct_state=+trk+est,actions=output:2",
        ]
    } else {
        &["in_port=1,actions=output:2"]
    };
    for flow in flows {
        command(&ofctl, &["add-flow", &bridge, flow])?;
    }
    Ok(processes)
}
