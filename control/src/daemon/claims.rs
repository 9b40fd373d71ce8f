//! Which devices pods get: what the CNI plugin made first, then what configuration and annotations name.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};

use fastpath::snapshot::PortRole;

use super::endpoints::Endpoints;
use crate::attach::Wanted;
use crate::cni::record::Record;
use crate::config::Config;
use crate::model::{Model, ObjectName, Pod};
use crate::netdev::host;

/// The host side of a pod's veth: as the CNI plugin recorded it, else as the configuration or its annotation names it.
pub(super) fn device_of<'a>(config: &'a Config, endpoints: &'a Endpoints, pod: &'a Pod) -> Option<&'a str> {
    match endpoints.of_pod(&pod.name) {
        Some(record) => Some(record.device.as_str()),
        None => config.interface_of(pod),
    }
}

/// The devices of the pods of `node`, and what was refused, one line each.
///
/// The host port's pair is never a pod's, and what the plugin made for a pod is that pod's alone: a device belongs to
/// who made it, whatever a pod says of itself.
pub(super) fn of_pods(
    config: &Config,
    node: &str,
    model: &Model,
    endpoints: &Endpoints,
) -> (BTreeMap<String, Wanted>, Vec<String>) {
    let made: HashMap<&str, &Record> = endpoints.records().map(|r| (r.device.as_str(), r)).collect();
    let its_own = endpoints.records().filter_map(|r| Some((endpoints.pod_of(&r.key)?, r)));
    let its_own: HashMap<&ObjectName, &Record> = its_own.collect();
    let pair = [config.host.interface.clone(), host::ours(&config.host.interface)];
    let mut wanted = BTreeMap::<String, Wanted>::new();
    let mut refused = Vec::new();
    let here = |p: &&std::sync::Arc<Pod>| p.node.as_deref() == Some(node) && !p.host_network && !p.finished;
    for pod in endpoints.here().filter_map(|name| model.pods.get(name)).filter(here) {
        let recorded = its_own.get(&pod.name).map(|r| r.device.as_str());
        let Some(device) = recorded.or_else(|| config.interface_of(pod)) else { continue };
        if pair.iter().any(|d| d == device) {
            refused.push(format!("pod {}: {device} is the host port's, and no pod's", pod.name));
            continue;
        }
        if let Some(record) = made.get(device)
            && endpoints.pod_of(&record.key) != Some(&pod.name)
        {
            let owner = record.pod.object_name();
            refused.push(format!("pod {}: {device} was made for pod {owner}, whose it stays", pod.name));
            continue;
        }
        let entry = Wanted {
            role: PortRole::Pod,
            pod: Some(pod.name.clone()),
            peer_mac: pod.mac,
            netns: pod.netns.clone(),
        };
        if let Some(other) = wanted.insert(device.to_owned(), entry).and_then(|w| w.pod) {
            refused.push(format!("{device}: named by pod {other} and pod {}", pod.name));
        }
    }
    (wanted, refused)
}

#[cfg(test)]
mod tests {
    use super::super::endpoints::tests::{Folder, NODE, model, name, pod, record};
    use super::*;

    /// What `of_pods` gives for these pods, each with the device it names, of which `a` was made by the plugin.
    fn claims(named: &[(&str, Option<&str>)], config: &Config) -> (Vec<(String, String)>, Vec<String>) {
        let folder = Folder::new("claims");
        let mut endpoints = Endpoints::open(&folder.0);
        endpoints.insert(record("0123456789", "a", None, &["10.0.0.1"], 1));
        let pods = named
            .iter()
            .map(|(name, device)| Pod { interface: device.map(str::to_owned), ..pod(name, None, &[]) });
        let laid_over = endpoints.overlay(&model(pods), NODE, false);
        let (wanted, refused) = of_pods(config, NODE, &laid_over, &endpoints);
        let pods = wanted.into_iter().map(|(d, w)| (d, w.pod.map(|p| p.name).unwrap_or_default()));
        (pods.collect(), refused)
    }

    #[test]
    fn the_host_ports_pair_is_no_pods() {
        let config = Config::default();
        for device in ["fp-host", "fp-host-xdp"] {
            let (wanted, refused) = claims(&[("b", Some(device)), ("c", Some("veth-c"))], &config);
            assert_eq!(wanted, [("veth-c".to_owned(), "c".to_owned())]);
            assert_eq!(refused, [format!("pod shop/b: {device} is the host port's, and no pod's")]);
        }
    }

    /// Neither an annotation nor the configuration takes a device from the pod that it was made for; nor does the pod
    /// itself get another.
    #[test]
    fn what_the_plugin_made_stays_its_pods() {
        let device = record("0123456789", "a", None, &[], 1).device;
        let own = (device.clone(), "a".to_owned());
        let why = |by: &str| format!("pod shop/{by}: {device} was made for pod shop/a, whose it stays");

        let (wanted, refused) = claims(&[("a", Some("veth-x")), ("b", Some(&device))], &Config::default());
        assert_eq!((wanted, refused), (vec![own.clone()], vec![why("b")]));

        let mut config = Config::default();
        config.pods.interfaces.insert(name("a"), "veth-a".to_owned());
        config.pods.interfaces.insert(name("b"), device.clone());
        let (wanted, refused) = claims(&[("a", None), ("b", Some("veth-b"))], &config);
        assert_eq!((wanted, refused), (vec![own], vec![why("b")]));

        // Its own pod is not known yet: it is a stranger's, under no policy, and not the first one's who asks.
        let (wanted, refused) = claims(&[("b", Some(&device))], &Config::default());
        assert_eq!((wanted, refused), (vec![], vec![why("b")]));
    }
}
