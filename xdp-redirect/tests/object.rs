//! The committed objects were built from the sources beside them. Needs no compiler: the script that
//! builds them records the sources' digests, and checks bit for bit where its toolchain is.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod lab;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use fastpath_xdp::{OnFailure, Redirect, Role};

#[test]
fn sources_are_those_that_the_objects_were_built_from() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let recorded = std::fs::read_to_string(here.join("obj/toolchain.txt")).unwrap();
    let digests: Vec<&str> =
        recorded.lines().filter(|line| line.contains(".rs") || line.contains("Cargo.")).collect();

    let mut names: Vec<String> =
        digests.iter().filter_map(|line| Some(line.split_once("  ")?.1.to_owned())).collect();
    let mut sources: Vec<String> = std::fs::read_dir(here.join("ebpf/src"))
        .unwrap()
        .map(|entry| format!("ebpf/src/{}", entry.unwrap().file_name().display()))
        .collect();
    sources.extend(
        ["src/abi.rs", "src/abi_outbox.rs", "src/abi_traffic.rs", "ebpf/Cargo.toml", "ebpf/Cargo.lock"]
            .map(String::from),
    );
    names.sort_unstable();
    sources.sort_unstable();
    assert_eq!(names, sources, "run scripts/build-xdp.sh");

    let mut check = Command::new("sha256sum")
        .args(["--check", "--strict", "--quiet"])
        .current_dir(here)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(digests.join("\n").as_bytes()).unwrap();
    assert!(check.wait().unwrap().success(), "the sources have changed: run scripts/build-xdp.sh");
}

/// A kernel's verifier gives up at a million instructions, and others follow more ways than this one. Needs root.
#[test]
fn the_verifier_has_room_to_spare() {
    let pins = lab::pin_dir();
    let mut redirect = Redirect::load(&lab::config(pins, OnFailure::Pass)).unwrap();
    for role in [Role::Endpoint, Role::Uplink] {
        let info = redirect.program(role).unwrap().info().unwrap();
        let count = info.verified_instruction_count().expect("Linux 5.16");
        println!("{role:?}: {count}");
        assert!((1..100_000).contains(&count), "{role:?}: {count} instructions verified");
    }
}

#[test]
fn the_loader_can_move_between_threads() {
    fn sendable<T: Send>() {}
    sendable::<fastpath_xdp::Redirect>();
    sendable::<fastpath_xdp::generator::Generator>();
    sendable::<fastpath_xdp::generator::Sink>();
    sendable::<fastpath_xdp::outbox::Sender>();
}
