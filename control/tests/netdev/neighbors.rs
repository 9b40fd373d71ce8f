//! The kernel resolves what the resolver wants, keeps it, and is left as it was.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fastpath_control::netdev::neighbor::PROTOCOL;
use fastpath_control::netdev::{NetView, NudState, Resolver, Watcher};
use tokio::sync::watch;

use crate::lab::Ns;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Two nodes on one link, with neighbour timers of a second instead of thirty.
fn nodes(name: &str) -> (Ns, Ns) {
    let (a, b) = (Ns::new(&format!("{name}a")), Ns::new(&format!("{name}b")));
    a.veth("up0", &b, "up0");
    for (ns, host) in [(&a, 1), (&b, 2)] {
        ns.ip(&format!("addr add 10.0.0.{host}/24 dev up0"));
        ns.ip(&format!("addr add fd00::{host}/64 dev up0 nodad"));
        for family in ["ipv4", "ipv6"] {
            for (key, ms) in [("base_reachable_time_ms", 500), ("retrans_time_ms", 200)] {
                ns.exec(&format!("sysctl -qw net.{family}.neigh.up0.{key}={ms}"));
            }
            ns.exec(&format!("sysctl -qw net.{family}.neigh.up0.delay_first_probe_time=1"));
            ns.exec(&format!("sysctl -qw net.{family}.neigh.up0.interval_probe_time_ms=300"));
        }
    }
    (a, b)
}

/// Does what the control thread does: maintains on every view and now and then, until a view is `good`.
async fn maintain_until(
    resolver: &mut Resolver,
    views: &mut watch::Receiver<Arc<NetView>>,
    what: &str,
    good: impl Fn(&NetView) -> bool,
) -> Arc<NetView> {
    let work = async {
        loop {
            let view = views.borrow_and_update().clone();
            let errors = resolver.maintain(&view);
            assert!(errors.is_empty(), "{errors:?}");
            if good(&view) {
                return view;
            }
            let _ = tokio::time::timeout(Duration::from_millis(500), views.changed()).await;
        }
    };
    match tokio::time::timeout(Duration::from_secs(60), work).await {
        Ok(view) => view,
        Err(_) => panic!("never seen: {what}; now {:#?}", views.borrow().neighbors),
    }
}

fn mac(view: &NetView, key: (u32, IpAddr)) -> Option<String> {
    view.mac_of(key.0, key.1).map(|m| m.to_string())
}

/// Resolves both families, follows the peer's MAC, comes back after the link was down. For either way of asking.
fn resolves_and_follows(make: fn() -> Resolver, managed: bool) {
    let (a, b) = nodes(if managed { "nm" } else { "nu" });
    a.block_on(|| async {
        let watcher = Watcher::start().unwrap();
        let mut views = watcher.subscribe();
        let mut resolver = make();
        let up0 = a.index("up0");
        let (v4, v6) = ((up0, ip("10.0.0.2")), (up0, ip("fd00::2")));
        let silent = (up0, ip("10.0.0.200"));
        resolver.want([v4, v6, silent]);
        assert_eq!(resolver.wanted().count(), 3);
        let first = b.mac("up0");
        let have = |v: &NetView, want: &str| [v4, v6].iter().all(|k| mac(v, *k).as_deref() == Some(want));
        let v = maintain_until(&mut resolver, &mut views, "both", |v| {
            have(v, &first) && v.neighbors.contains_key(&silent)
        })
        .await;
        assert_eq!(mac(&v, silent), None);
        for key in [v4, v6] {
            assert_eq!(v.neighbors[&key].managed, managed);
            assert_eq!(v.neighbors[&key].protocol, PROTOCOL);
        }
        maintain_until(&mut resolver, &mut views, "nobody there", |v| {
            v.neighbors.get(&silent).is_some_and(|n| n.state == NudState::Failed)
        })
        .await;

        b.ip("link set up0 address 02:00:00:00:00:22");
        maintain_until(&mut resolver, &mut views, "the new MAC", |v| have(v, "02:00:00:00:00:22")).await;

        // Somebody comes alive that did not answer.
        b.ip("addr add 10.0.0.200/24 dev up0");
        maintain_until(&mut resolver, &mut views, "the silent one", |v| mac(v, silent).is_some()).await;

        // A link that goes down takes its neighbours along.
        a.ip("link set up0 down");
        maintain_until(&mut resolver, &mut views, "flushed", |v| mac(v, v4).is_none()).await;
        a.ip("link set up0 up");
        a.ip("addr add fd00::1/64 dev up0 nodad");
        maintain_until(&mut resolver, &mut views, "again", |v| have(v, "02:00:00:00:00:22")).await;

        // The device goes, and nobody minds.
        a.ip("link del up0");
        maintain_until(&mut resolver, &mut views, "gone", |v| !v.links.contains_key(&up0)).await;
        let errors = resolver.release_all();
        assert!(errors.is_empty(), "{errors:?}");
    });
}

#[test]
fn managed_by_the_kernel() {
    resolves_and_follows(|| Resolver::new().unwrap(), true);
}

#[test]
fn asked_again_and_again() {
    resolves_and_follows(|| Resolver::without_managed().unwrap(), false);
}

#[test]
fn what_is_not_wanted_is_released_and_the_administrators_is_left_alone() {
    let (a, b) = nodes("nr");
    b.ip("addr add 10.0.0.3/24 dev up0");
    a.ip("neigh add 10.0.0.9 lladdr 02:00:00:00:00:99 dev up0 nud permanent");
    a.ip("neigh add fd00::9 lladdr 02:00:00:00:00:99 dev up0 nud permanent");
    a.block_on(|| async {
        let watcher = Watcher::start().unwrap();
        let mut views = watcher.subscribe();
        let up0 = a.index("up0");
        let (two, three) = ((up0, ip("10.0.0.2")), (up0, ip("10.0.0.3")));
        let permanent = [(up0, ip("10.0.0.9")), (up0, ip("fd00::9"))];
        let untouched = |v: &NetView| {
            permanent.iter().all(|k| {
                let n = &v.neighbors[k];
                n.state == NudState::Permanent && !n.managed && n.protocol == 0
            })
        };
        let managed = |v: &NetView, key| v.neighbors.get(&key).is_some_and(|n| n.managed);
        let mut resolver = Resolver::new().unwrap();
        resolver.want([two, three, permanent[0], permanent[1]]);
        // Also when the view is older than the administrator's entry.
        let errors =
            resolver.maintain(&NetView { neighbors: Default::default(), ..(*watcher.view()).clone() });
        assert!(errors.is_empty(), "{errors:?}");
        let v = maintain_until(&mut resolver, &mut views, "both managed", |v| {
            managed(v, two) && managed(v, three)
        })
        .await;
        assert!(untouched(&v));

        resolver.want([two, permanent[0]]);
        let v = maintain_until(&mut resolver, &mut views, "one released", |v| !managed(v, three)).await;
        assert!(managed(&v, two) && untouched(&v));

        // Killed: nothing is released. The next one takes over what it wants, and releases the rest.
        resolver.want([two, three]);
        maintain_until(&mut resolver, &mut views, "both again", |v| managed(v, two) && managed(v, three))
            .await;
        drop(resolver);
        assert!(managed(&watcher.view(), two));
        let mut next = Resolver::new().unwrap();
        next.want([three, permanent[1]]);
        let v = maintain_until(&mut next, &mut views, "the orphan released", |v| !managed(v, two)).await;
        assert!(managed(&v, three) && untouched(&v));

        // Somebody else's managed entry is not ours to release, wanted or not.
        b.ip("addr add 10.0.0.4/24 dev up0");
        let (four, five) = ((up0, ip("10.0.0.4")), (up0, ip("10.0.0.5")));
        a.ip("neigh add 10.0.0.4 dev up0 managed");
        a.ip("neigh add 10.0.0.5 dev up0 managed");
        next.want([three, four, permanent[1]]);
        let theirs = |v: &NetView| managed(v, four) && managed(v, five);
        maintain_until(&mut next, &mut views, "theirs", |v| theirs(v) && mac(v, four).is_some()).await;
        next.want([three, permanent[1]]);
        maintain_until(&mut next, &mut views, "theirs still", theirs).await;
        let errors = next.release_all();
        assert!(errors.is_empty(), "{errors:?}");
        let v = maintain_until(&mut next, &mut views, "all released", |v| !managed(v, three)).await;
        assert!(untouched(&v) && theirs(&v), "{:#?}", v.neighbors);
        assert_eq!(a.ip("neigh show nud permanent").lines().count(), 2);
    });
}

/// What cannot be is said, with the neighbour's name, and does not keep the others from being resolved.
#[test]
fn an_error_is_of_one_neighbour() {
    let (a, _b) = nodes("ne");
    a.block_on(|| async {
        let watcher = Watcher::start().unwrap();
        let mut views = watcher.subscribe();
        let up0 = a.index("up0");
        let good = (up0, ip("10.0.0.2"));
        let mut resolver = Resolver::new().unwrap();
        // Not a device of this namespace; never asked for.
        resolver.want([good, (4711, ip("10.0.0.3"))]);
        maintain_until(&mut resolver, &mut views, "the good one", |v| mac(v, good).is_some()).await;
        // A view that is behind: the device is gone by now.
        let mut behind = (*watcher.view()).clone();
        let mut link = behind.links[&up0].clone();
        link.index = 4711;
        behind.links.insert(4711, link);
        assert!(resolver.maintain(&behind).is_empty(), "gone is no error");
        // The kernel refuses: IPv6 is off on the device.
        a.exec("sysctl -qw net.ipv6.conf.up0.disable_ipv6=1");
        let refused = ip("fd00::7");
        resolver.want([good, (up0, refused)]);
        let errors = resolver.maintain(&watcher.view());
        let [error] = errors.as_slice() else { panic!("{errors:?}") };
        assert!(error.to_string().contains("neighbour fd00::7 on device #"), "{error}");
        assert!(mac(&watcher.view(), good).is_some());
    });
}
