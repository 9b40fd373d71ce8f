#![forbid(unsafe_code)]

use clap::{CommandFactory, Parser};

use super::*;
use crate::api::types::*;
use crate::explain::Outcome;
use crate::source::Severity;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

#[test]
fn command_lines() {
    Cli::command().debug_assert();
    for line in [
        "fastpath run",
        "fastpath run --config x.toml",
        "fastpath status",
        "fastpath --state-dir /run/x status -o json",
        "fastpath show endpoints",
        "fastpath show nodes -o json",
        "fastpath show flows --limit 5",
        "fastpath show routes --socket /x.sock",
        "fastpath show neighbors",
        "fastpath show policies",
        "fastpath show services -o json",
        "fastpath show drops --all",
        "fastpath show ports",
        "fastpath show runtime",
        "fastpath config check x.toml",
        "fastpath config reference",
        "fastpath tune",
        "fastpath tune -o toml",
        "fastpath tune --profile small -o json",
        "fastpath version",
    ] {
        assert!(parse(line).is_ok(), "{line}");
    }
    for line in [
        "fastpath",
        "fastpath nope",
        "fastpath show",
        "fastpath show nope",
        "fastpath show flows --limit 0",
        "fastpath show flows --limit 100001",
        "fastpath status -o yaml",
        "fastpath config check",
        "fastpath status extra",
        "fastpath tune --profile none",
    ] {
        assert_eq!(parse(line).err().map(|e| e.exit_code()), Some(2), "{line}");
    }
    let socket = |line: &str| parse(line).expect("valid").socket();
    assert_eq!(socket("fastpath status"), std::path::Path::new("/run/fastpath/fastpath.sock"));
    assert_eq!(socket("fastpath status --state-dir /a"), std::path::Path::new("/a/fastpath.sock"));
    assert_eq!(socket("fastpath --state-dir /a status --socket /b"), std::path::Path::new("/b"));
}

#[test]
fn help_teaches() {
    let help = Cli::command().render_long_help().to_string();
    for text in ["Examples:", "fastpath config check", "Exit codes:", "3  no daemon answers"] {
        assert!(help.contains(text), "{text}\n{help}");
    }
}

#[test]
fn durations() {
    let shown = [0, 59, 60, 3599, 3600, 86_399, 86_400, 1_000_000].map(show::duration);
    assert_eq!(shown, ["0s", "59s", "1m0s", "59m59s", "1h0m", "23h59m", "1d0h", "11d13h"]);
}

#[test]
fn status_says_what_is_wrong() {
    let status = Status {
        version: "1.2.3".into(),
        node: "node-a".into(),
        pid: 7,
        uptime_s: 61,
        generation: 5,
        acked_generation: 4,
        ready: true,
        last_sync: Some(Sync { at: "2024-01-01T00:00:00.000Z".into(), age_s: 2 }),
        applied: Applied::default(),
        source: None,
        problems: vec![Problem {
            severity: Severity::Error,
            origin: "a.yaml:3".into(),
            reason: "bad\nthing".into(),
        }],
        ports: vec![PortStatus {
            name: "up-a".into(),
            role: "uplink".into(),
            mode: Some("native".into()),
            zero_copy: false,
            queues: 2,
            workers: vec![0, 1],
            state: "up".into(),
            notes: vec!["the driver has no such ring".into()],
        }],
        workers: vec![WorkerStatus {
            id: 0,
            core: Some(1),
            polling: "adaptive".into(),
            transmit: "sockets".into(),
            ports: 4,
            heartbeat_age_ms: 3,
        }],
        degraded: vec!["fp-a3: no such device".into()],
    };
    assert!(!status.healthy());
    let want = "\
State:      ready, degraded
Node:       node-a
Daemon:     version 1.2.3, pid 7, up 1m1s
Snapshot:   generation 5, acknowledged 4
Last sync:  2024-01-01T00:00:00.000Z, 2s ago
Degraded:   fp-a3: no such device
Problem:    error: a.yaml:3: bad thing
Note:       up-a: the driver has no such ring

PORT   ROLE     MODE     ZERO-COPY   QUEUES   WORKERS   STATE
up-a   uplink   native   no               2   0,1       up

WORKER   CORE   POLLING    TRANSMIT   PORTS   HEARTBEAT
     0      1   adaptive   sockets        4   3 ms ago
";
    assert_eq!(show::status(&status), want);
}

#[test]
fn tables() {
    let endpoint = Endpoint {
        namespace: "demo".into(),
        pod: "a1".into(),
        addresses: vec!["10.77.1.11".parse().expect("ip"), "fd00:77:1::11".parse().expect("ip")],
        interface: None,
        port: Some(3),
        mac: None,
        state: "attached".into(),
        worker: Some(0),
    };
    let want = "\
NAMESPACE   POD   ADDRESSES                  INTERFACE   PORT   MAC   WORKER   STATE
demo        a1    10.77.1.11,fd00:77:1::11   -              3   -          0   attached
";
    assert_eq!(show::endpoints(&[endpoint]), want);
    let tuple = |src: &str, dst: &str| Tuple {
        src: src.parse().expect("ip"),
        sport: 1000,
        dst: dst.parse().expect("ip"),
        dport: 80,
    };
    let flow = Flow {
        proto: "tcp".into(),
        original: tuple("fd00::1", "fd00::2"),
        reply: tuple("10.0.0.1", "10.0.0.2"),
        translated: None,
        service: None,
        verdict: Outcome::Allow,
        rules: Vec::new(),
        state: "established".into(),
        idle_ms: 1234,
        generation: 9,
        egress: "fp-a1".into(),
    };
    let denied = Flow {
        original: tuple("10.0.0.1", "10.96.0.1"),
        translated: Some(tuple("10.0.0.1", "10.0.0.2")),
        service: Some("shop/db:sql".into()),
        verdict: Outcome::Deny,
        rules: vec!["shop/web egress rule 0".into(), "isolated: no policy allows (ingress: shop/db)".into()],
        ..flow.clone()
    };
    let want = "\
PROTO   ORIGINAL                         TRANSLATED                     STATE         VERDICT   IDLE   GEN   EGRESS   SERVICE       RULES
tcp     [fd00::1]:1000 -> [fd00::2]:80   -                              established   allow     1.2s     9   fp-a1    -             -
tcp     10.0.0.1:1000 -> 10.96.0.1:80    10.0.0.1:1000 -> 10.0.0.2:80   established   deny      1.2s     9   fp-a1    shop/db:sql   shop/web egress rule 0; isolated: no policy allows (ingress: shop/db)
(2 of 5 flows; more with --limit)
";
    assert_eq!(show::flows(&Flows { flows: vec![flow, denied], total: 5 }), want);
    let drop = |reason: &str, packets| Drop {
        reason: reason.into(),
        packets,
        help: "Help.".into(),
        details: Vec::new(),
    };
    let drops = [drop("no_route", 12), drop("multicast", 0)];
    assert_eq!(show::drops(&drops, false), "REASON     PACKETS   MEANING\nno_route        12   Help.\n");
    assert_eq!(show::drops(&drops, true).lines().count(), 3);
    let node = NodeRuntime {
        node: "parse".into(),
        calls: 10,
        vectors: 4,
        packets: 10,
        packets_per_vector: 2.5,
        clocks_per_packet: 33.33,
    };
    let runtime =
        Runtime { workers: vec![WorkerRuntime { worker: 0, nodes: vec![node.clone()] }], total: vec![node] };
    let want = "\
WORKER   NODE    CALLS   VECTORS   PACKETS   PACKETS/VECTOR   CLOCKS/PACKET
0        parse      10         4        10             2.50            33.3
total    parse      10         4        10             2.50            33.3
";
    assert_eq!(show::runtime(&runtime), want);
    let xdp = |outcome: &str, packets| XdpCounter {
        program: "endpoint".into(),
        outcome: outcome.into(),
        packets,
        help: "Help".into(),
    };
    let port = PortRow {
        port: 1,
        name: "fp-a1".into(),
        role: "pod".into(),
        mode: None,
        zero_copy: false,
        receiver_full: 7,
        queues: vec![QueueStats { rx_packets: 5, ..QueueStats::default() }],
    };
    let mut ports = Ports { ports: vec![port], xdp: vec![xdp("redirected", 12), xdp("stale_dropped", 0)] };
    let shown = show::ports(&ports);
    let (queues, programs) = shown.split_once("\n\n").expect("two tables");
    assert_eq!(queues.lines().count(), 2, "{queues}");
    assert!(
        queues.lines().all(|l| l.starts_with("PORT   NAME") || l.starts_with("   1   fp-a1")),
        "{queues}"
    );
    let want = "\
XDP-PROGRAM   OUTCOME      PACKETS   MEANING
endpoint      redirected        12   Help
";
    assert_eq!(programs, want);
    ports.xdp.clear();
    assert_eq!(show::ports(&ports).lines().count(), 2);
    assert_eq!(show::routes(&[]), "PREFIX   KIND   VIA   DEVICE   NODE\n");
}

#[test]
fn what_policies_denied_names_them() {
    let isolation =
        |detail: &str, packets| DropDetail { detail: detail.into(), packets, origin: "p.yaml:3".into() };
    let drop = Drop {
        reason: "policy_denied_ingress".into(),
        packets: 12,
        help: "Help.".into(),
        details: vec![isolation("isolated: no policy allows (shop/a, shop/b)", 11)],
    };
    let want = "\
REASON                  PACKETS   MEANING
policy_denied_ingress        12   Help.
  of which                   11   isolated: no policy allows (shop/a, shop/b) [p.yaml:3]
";
    assert_eq!(show::drops(&[drop], false), want);
    let rule = PolicyRow {
        policy: "shop/a".into(),
        policies: vec!["shop/a".into()],
        direction: "ingress".into(),
        rule: Some(1),
        verdict: Outcome::Allow,
        decides: "rule 1".into(),
        packets: 10,
        bytes: 1000,
        flows: 2,
        origin: "p.yaml:9".into(),
    };
    let isolated = PolicyRow {
        policies: vec!["shop/a".into(), "shop/b".into()],
        rule: None,
        verdict: Outcome::Deny,
        decides: "isolated: no policy allows".into(),
        origin: "p.yaml:3".into(),
        ..rule.clone()
    };
    let want = "\
POLICY          DIRECTION   RULE   VERDICT   DECIDES                      PACKETS   BYTES   FLOWS   ORIGIN
shop/a          ingress        1   allow     rule 1                            10    1000       2   p.yaml:9
shop/a,shop/b   ingress        -   deny      isolated: no policy allows        10    1000       2   p.yaml:3
";
    assert_eq!(show::policies(&[rule, isolated]), want);
}

#[test]
fn services_count_their_backends() {
    let backend = |state: &str| BackendRow {
        address: "10.0.0.1".parse().expect("ip"),
        port: 80,
        node: None,
        state: state.into(),
        used: state == "ready",
    };
    let row = ServiceRow {
        service: "shop/web".into(),
        port_name: String::new(),
        kind: "NodePort".into(),
        addresses: vec!["192.0.2.1".parse().expect("ip"), "192.0.2.2".parse().expect("ip")],
        protocol: "TCP".into(),
        port: 30080,
        ready: 1,
        backends: vec![backend("ready"), backend("terminating")],
        affinity_s: Some(60),
        local: true,
    };
    let want = "\
SERVICE    PORT   KIND       ADDRESSES             PROTOCOL   NUMBER   BACKENDS   AFFINITY   POLICY
shop/web   -      NodePort   192.0.2.1,192.0.2.2   TCP         30080        1/2        60s   local
";
    assert_eq!(show::services(&[row]), want);
}

/// Answers that were there before keep their form where there is nothing to add.
#[test]
fn drops_without_details_look_as_before() {
    let drop = Drop { reason: "no_route".into(), packets: 1, help: "Help.".into(), details: Vec::new() };
    let json = serde_json::json!({"reason": "no_route", "packets": 1, "help": "Help."});
    assert_eq!(serde_json::to_value(&drop).expect("JSON"), json);
    assert_eq!(serde_json::from_value::<Drop>(json).expect("a drop"), drop);
}

#[test]
fn timestamps_are_rfc_3339() {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(1_700_000_000_123);
    let sync = Sync::from(at);
    assert_eq!(sync.at, "2023-11-14T22:13:20.123Z");
    assert!(sync.age_s > 0);
}
