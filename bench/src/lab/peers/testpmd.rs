//! DPDK's testpmd on the pods' devices by its AF_XDP driver, one forwarding core.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result};

use super::super::topology::Topology;
use super::process::{Processes, installed};

/// Forwards between the sender's device and the first pod's; the main thread idles on core 0.
pub(super) fn start(topology: &Topology) -> Result<Processes> {
    let program = installed("dpdk-testpmd", "dpdk, librte-net-af-xdp23")?;
    let program = program.to_str().context("a path that is no text")?;
    let log = topology.dir.join("testpmd.log");
    let prefix = format!("--file-prefix=fpbench{}", std::process::id());
    let mut processes = Processes::default();
    #[rustfmt::skip]
    let args = [
        "stdbuf", "-oL", program, "-l", "0,1", "--main-lcore=0", "--no-huge", "-m", "512", "--no-pci", "--no-telemetry", &prefix,
        "--vdev", "net_af_xdp0,iface=fp-a", "--vdev", "net_af_xdp1,iface=fp0",
        "--", "--forward-mode=macswap", "--nb-cores=1", "--auto-start", "--no-mlockall", "--no-lsc-interrupt",
        "--total-num-mbufs=16384",
    ];
    processes.start(topology, &args, &[], &log)?;
    processes.wait_until("dpdk-testpmd", &log, || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("Press enter to exit"))
    })?;
    Ok(processes)
}
