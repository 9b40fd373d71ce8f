use proptest::prelude::*;

use super::*;

fn owner(n: u32) -> Owner {
    let key = Key { container: format!("c{n}"), ifname: "eth0".to_owned() };
    Owner { network: "pods".to_owned(), key }
}

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|n| n.parse().unwrap()).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn none() -> BTreeSet<IpAddr> {
    BTreeSet::new()
}

/// A folder of this test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("fp-ipam-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn special_addresses_are_left_out() {
    for (range, want) in [
        ("10.0.0.0/29", vec!["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]),
        ("10.0.0.8/30", vec!["10.0.0.10"]),
        ("10.0.0.8/31", vec!["10.0.0.8", "10.0.0.9"]),
        ("10.0.0.8/32", vec!["10.0.0.8"]),
        ("fd00::/126", vec!["fd00::2", "fd00::3"]),
        ("fd00::8/127", vec!["fd00::8", "fd00::9"]),
        ("fd00::8/128", vec!["fd00::8"]),
        // The last of all.
        ("255.255.255.252/30", vec!["255.255.255.254"]),
        (
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127",
            vec!["ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
        ),
    ] {
        let (mut pools, cidrs) = (Pools::default(), nets(&[range]));
        let want: Vec<IpAddr> = want.into_iter().map(ip).collect();
        let mut got = Vec::new();
        let exhausted = (0..).find_map(|n| match pools.allocate(&owner(n), &cidrs, &none()) {
            Ok(ips) => {
                got.extend(ips);
                None
            }
            Err(e) => Some(e),
        });
        assert_eq!(got, want, "{range}");
        assert_eq!(exhausted, Some(Exhausted { ranges: cidrs }), "{range}");
    }
}

#[test]
fn both_families_or_none() {
    let mut pools = Pools::default();
    let cidrs = nets(&["fd00::/64", "10.0.0.0/30"]);
    assert_eq!(pools.allocate(&owner(1), &cidrs, &none()).unwrap(), [ip("10.0.0.2"), ip("fd00::2")]);
    // Asked again it is the same.
    assert_eq!(pools.allocate(&owner(1), &cidrs, &none()).unwrap(), [ip("10.0.0.2"), ip("fd00::2")]);
    let e = pools.allocate(&owner(2), &cidrs, &none()).unwrap_err();
    assert_eq!(e.to_string(), "no address is free in 10.0.0.0/30");
    assert_eq!(pools.of(&owner(2)), [] as [IpAddr; 0]);
    pools.free(&owner(1));
    assert_eq!(pools.allocate(&owner(2), &cidrs, &none()).unwrap()[0], ip("10.0.0.2"));
}

#[test]
fn the_nodes_own_addresses_are_left_out() {
    let mut pools = Pools::default();
    let cidrs = nets(&["10.0.0.0/29"]);
    let reserved = BTreeSet::from([ip("10.0.0.2"), ip("10.0.0.4")]);
    let take = |pools: &mut Pools, n, reserved: &BTreeSet<IpAddr>| {
        pools.allocate(&owner(n), &cidrs, reserved).ok().map(|ips| ips[0])
    };
    let got: Vec<_> = (0..4).map(|n| take(&mut pools, n, &reserved)).collect();
    assert_eq!(got, [Some(ip("10.0.0.3")), Some(ip("10.0.0.5")), Some(ip("10.0.0.6")), None]);
    // When the node has given one up, pods can have it.
    let reserved = BTreeSet::from([ip("10.0.0.2")]);
    assert_eq!(take(&mut pools, 9, &reserved), Some(ip("10.0.0.4")));
    // An owner whose address became the node's gets another.
    pools.free(&owner(0));
    let reserved = BTreeSet::from([ip("10.0.0.2"), ip("10.0.0.5")]);
    assert_eq!(take(&mut pools, 1, &reserved), Some(ip("10.0.0.3")));
}

#[test]
fn a_range_that_changes() {
    let mut pools = Pools::default();
    let old = nets(&["10.0.0.0/29"]);
    for n in 0..2 {
        pools.allocate(&owner(n), &old, &none()).unwrap();
    }
    // Enlarged: what is taken in the old range is taken in the new one too.
    let new = nets(&["10.0.0.0/28"]);
    let got: Vec<IpAddr> =
        (2..12).flat_map(|n| pools.allocate(&owner(n), &new, &none()).unwrap_or_default()).collect();
    let all: BTreeSet<IpAddr> = pools.taken().map(|(ip, _)| ip).collect();
    assert_eq!((got.len(), all.len()), (10, 12));
    // Once its pods are gone, the old range is forgotten.
    pools.free(&owner(0));
    pools.free(&owner(1));
    pools.free(&owner(11));
    pools.allocate(&owner(20), &new, &none()).unwrap();
    assert_eq!(pools.0.keys().copied().collect::<Vec<_>>(), new);
}

#[test]
fn a_large_range_is_used_again_before_the_list_grows() {
    let mut pools = Pools::default();
    let cidrs = nets(&["fd00::/64"]);
    for n in 0..20_000 {
        pools.allocate(&owner(n), &cidrs, &none()).unwrap();
        pools.free(&owner(n));
    }
    let pool = &pools.0[&cidrs[0]];
    assert_eq!((pool.next, pool.freed.len()), (REUSE_FROM, REUSE_FROM as usize - 2));
    // And more than that at one time are to be had.
    let mut pools = Pools::default();
    for n in 0..5000 {
        pools.allocate(&owner(n), &cidrs, &none()).unwrap();
    }
    assert_eq!(pools.taken().count(), 5000);
}

#[test]
fn another_version_is_refused() {
    let dir = Folder::new("version");
    std::fs::write(dir.0.join(FILE), r#"{"version":2,"ranges":{}}"#).unwrap();
    let e = Ipam::of(&dir.0).allocate(&owner(1), &nets(&["10.0.0.0/24"]), &none()).unwrap_err();
    assert_eq!(e.code, Code::Io as u32);
    assert!(e.msg.contains("version"), "{e}");
}

/// Many at once, each of them with the file as only common ground.
#[test]
fn no_address_twice_among_threads() {
    let dir = Folder::new("threads");
    let (ipam, cidrs) = (Ipam::of(&dir.0), nets(&["10.0.0.0/24", "fd00::/64"]));
    let got: Vec<Vec<IpAddr>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..50)
            .map(|n| {
                let (ipam, cidrs) = (&ipam, &cidrs);
                scope.spawn(move || {
                    for _ in 0..3 {
                        ipam.allocate(&owner(n), cidrs, &none()).unwrap();
                        ipam.free(&[owner(n)]).unwrap();
                    }
                    ipam.allocate(&owner(n), cidrs, &none()).unwrap()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let all: BTreeSet<IpAddr> = got.iter().flatten().copied().collect();
    assert_eq!(all.len(), 100);
    assert_eq!(ipam.read().unwrap().taken().count(), 100);
}

#[derive(Clone, Debug)]
enum Step {
    Add(u32),
    Del(u32),
    /// The process dies while it writes: what it wrote is half a file beside the real one.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..12u32).prop_map(Step::Add),
        3 => (0..12u32).prop_map(Step::Del),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Against a list of what is free, in the order in which it is to be given out.
    #[test]
    fn as_a_naive_model(steps in proptest::collection::vec(step(), 0..60)) {
        let dir = Folder::new("model");
        let (ipam, cidrs) = (Ipam::of(&dir.0), nets(&["10.0.0.0/29", "fd00::/125"]));
        let mut free4: Vec<IpAddr> = (2..7).map(|n| ip(&format!("10.0.0.{n}"))).collect();
        let mut free6: Vec<IpAddr> = (2..8).map(|n| ip(&format!("fd00::{n}"))).collect();
        let mut has: BTreeMap<u32, [IpAddr; 2]> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Add(n) => {
                    let got = ipam.allocate(&owner(n), &cidrs, &none());
                    if let Some(old) = has.get(&n) {
                        prop_assert_eq!(got.unwrap(), old);
                    } else if free4.is_empty() || free6.is_empty() {
                        prop_assert_eq!(got.unwrap_err().code, Code::Exhausted as u32);
                    } else {
                        let want = [free4.remove(0), free6.remove(0)];
                        prop_assert_eq!(got.unwrap(), want);
                        has.insert(n, want);
                    }
                }
                Step::Del(n) => {
                    ipam.free(&[owner(n)]).unwrap();
                    if let Some([v4, v6]) = has.remove(&n) {
                        free4.push(v4);
                        free6.push(v6);
                    }
                }
                Step::Crash => {
                    std::fs::write(dir.0.join("ipam.json.new"), r#"{"version":1,"ran"#).unwrap();
                }
            }
            let want: BTreeMap<IpAddr, Owner> =
                has.iter().flat_map(|(n, ips)| ips.map(|ip| (ip, owner(*n)))).collect();
            let pools = ipam.read().unwrap();
            let got: BTreeMap<IpAddr, Owner> = pools.taken().map(|(ip, o)| (ip, o.clone())).collect();
            prop_assert_eq!(got, want);
        }
    }
}
