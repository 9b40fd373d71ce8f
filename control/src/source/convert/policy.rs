//! NetworkPolicy.
#![forbid(unsafe_code)]

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as net;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{FieldError, cidr, is_port_name, object_name, port, protocol, selector};
use crate::model::{
    IpBlock, NamespaceScope, NetworkPolicy, ObjectName, Origin, Peer, PortMatch, PortSpec, Rule, Selector,
};

/// A `networking.k8s.io/v1` NetworkPolicy with its defaults filled in.
///
/// # Errors
/// The first field that the API server's validation would refuse.
pub fn network_policy(
    object: &net::NetworkPolicy,
    line_of: impl Fn(&str) -> Origin,
) -> Result<NetworkPolicy, FieldError> {
    let name = object_name(&object.metadata)?;
    let spec = object.spec.as_ref().ok_or_else(|| FieldError::new("spec", "is missing"))?;
    let pod_selector = match &spec.pod_selector {
        Some(s) => selector(s, "spec.podSelector")?,
        None => Selector::default(),
    };
    let (isolates_ingress, isolates_egress) = policy_types(spec)?;
    let mut ingress = Vec::new();
    for (i, r) in spec.ingress.iter().flatten().enumerate() {
        ingress.push(rule(
            &format!("spec.ingress[{i}]"),
            "from",
            r.from.as_deref(),
            r.ports.as_deref(),
            &line_of,
        )?);
    }
    let mut egress = Vec::new();
    for (i, r) in spec.egress.iter().flatten().enumerate() {
        egress.push(rule(&format!("spec.egress[{i}]"), "to", r.to.as_deref(), r.ports.as_deref(), &line_of)?);
    }
    let origin = line_of("");
    Ok(NetworkPolicy {
        name,
        pod_selector,
        isolates_ingress,
        isolates_egress,
        ingress,
        egress,
        closed: false,
        origin,
    })
}

/// What of an object that [`network_policy`] refuses is in force all the same: without it the pods that it is to isolate
/// would be open to all. `object` is the whole object.
///
/// A `podSelector` that cannot be read selects every pod of the namespace, `policyTypes` that cannot be read are both.
/// A peer or port that cannot be honoured matches nothing, and neither does a rule of which none is left.
pub fn closed(name: ObjectName, object: &Value, line_of: impl Fn(&str) -> Origin) -> NetworkPolicy {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let pod_selector = spec.get("podSelector").and_then(|value| {
        let read = LabelSelector::deserialize(value).ok()?;
        selector(&read, "spec.podSelector").ok()
    });
    let (isolates_ingress, isolates_egress) = closed_types(spec);
    NetworkPolicy {
        name,
        pod_selector: pod_selector.unwrap_or_default(),
        isolates_ingress,
        isolates_egress,
        ingress: closed_rules(spec, "ingress", "from", &line_of),
        egress: closed_rules(spec, "egress", "to", &line_of),
        closed: true,
        origin: line_of(""),
    }
}

fn closed_types(spec: &Value) -> (bool, bool) {
    let is_empty =
        |v: Option<&Value>| v.is_none_or(|v| v.is_null() || v.as_array().is_some_and(Vec::is_empty));
    let types = spec.get("policyTypes");
    if is_empty(types) {
        return (true, !is_empty(spec.get("egress")));
    }
    let names =
        |list: &Vec<Value>| list.iter().map(|t| t.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
    match types.and_then(Value::as_array).and_then(names) {
        Some(names) if names.iter().all(|n| n == "Ingress" || n == "Egress") => {
            (names.iter().any(|n| n == "Ingress"), names.iter().any(|n| n == "Egress"))
        }
        _ => (true, true),
    }
}

fn closed_rules(spec: &Value, direction: &str, side: &str, line_of: impl Fn(&str) -> Origin) -> Vec<Rule> {
    let rules = spec.get(direction).and_then(Value::as_array).into_iter().flatten().enumerate();
    let rule = |(i, rule): (usize, &Value)| {
        let path = format!("spec.{direction}[{i}]");
        let rule = rule.as_object()?;
        Some(Rule {
            peers: readable(rule.get(side), |p| peer(p, &path))?,
            ports: readable(rule.get("ports"), |p| port_match(p, &path))?,
            origin: line_of(&path),
        })
    };
    rules.filter_map(rule).collect()
}

/// The entries of a list that can be honoured; `None` when there are some, but none that can: where all are left out
/// nothing is to match, while an empty list matches everything.
fn readable<K: DeserializeOwned, T>(
    list: Option<&Value>,
    convert: impl Fn(&K) -> Result<T, FieldError>,
) -> Option<Vec<T>> {
    let Some(list) = list.filter(|l| !l.is_null()) else { return Some(Vec::new()) };
    let entries = list.as_array()?;
    let good: Vec<T> = entries.iter().filter_map(|e| convert(&K::deserialize(e).ok()?).ok()).collect();
    (entries.is_empty() || !good.is_empty()).then_some(good)
}

fn policy_types(spec: &net::NetworkPolicySpec) -> Result<(bool, bool), FieldError> {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    if types.is_empty() {
        return Ok((true, spec.egress.as_ref().is_some_and(|e| !e.is_empty())));
    }
    if types.len() > 2 {
        return Err(FieldError::new("spec.policyTypes", "may not have more than two entries"));
    }
    for (i, t) in types.iter().enumerate() {
        if t != "Ingress" && t != "Egress" {
            let reason = format!("{t:?} is not one of Ingress, Egress");
            return Err(FieldError::new(format!("spec.policyTypes[{i}]"), reason));
        }
    }
    Ok((types.iter().any(|t| t == "Ingress"), types.iter().any(|t| t == "Egress")))
}

fn rule(
    path: &str,
    side: &str,
    peers: Option<&[net::NetworkPolicyPeer]>,
    ports: Option<&[net::NetworkPolicyPort]>,
    line_of: impl Fn(&str) -> Origin,
) -> Result<Rule, FieldError> {
    let peers = peers.unwrap_or_default().iter().enumerate();
    let ports = ports.unwrap_or_default().iter().enumerate();
    Ok(Rule {
        peers: peers.map(|(i, p)| peer(p, &format!("{path}.{side}[{i}]"))).collect::<Result<_, _>>()?,
        ports: ports.map(|(i, p)| port_match(p, &format!("{path}.ports[{i}]"))).collect::<Result<_, _>>()?,
        origin: line_of(path),
    })
}

fn peer(peer: &net::NetworkPolicyPeer, path: &str) -> Result<Peer, FieldError> {
    let pods = peer.pod_selector.as_ref().map(|s| selector(s, &format!("{path}.podSelector"))).transpose()?;
    let namespaces = peer
        .namespace_selector
        .as_ref()
        .map(|s| selector(s, &format!("{path}.namespaceSelector")))
        .transpose()?;
    match (&peer.ip_block, pods, namespaces) {
        (Some(block), None, None) => ip_block(block, &format!("{path}.ipBlock")).map(Peer::Block),
        (Some(_), _, _) => {
            let reason = "may not be given together with podSelector or namespaceSelector";
            Err(FieldError::new(format!("{path}.ipBlock"), reason))
        }
        (None, None, None) => {
            Err(FieldError::new(path, "must have a podSelector, a namespaceSelector or an ipBlock"))
        }
        (None, pods, namespaces) => Ok(Peer::Pods {
            namespaces: namespaces.map_or(NamespaceScope::Own, NamespaceScope::Matching),
            pods: pods.unwrap_or_default(),
        }),
    }
}

fn ip_block(block: &net::IPBlock, path: &str) -> Result<IpBlock, FieldError> {
    let network = cidr(&block.cidr, &format!("{path}.cidr"))?;
    let mut except = Vec::<IpNet>::new();
    for (i, text) in block.except.iter().flatten().enumerate() {
        let at = format!("{path}.except[{i}]");
        let e = cidr(text, &at)?;
        if !network.contains(&e) || network.prefix_len() >= e.prefix_len() {
            let reason = format!("{text} must be inside {} and smaller than it", block.cidr);
            return Err(FieldError::new(at, reason));
        }
        except.push(e);
    }
    except.sort_unstable();
    except.dedup();
    Ok(IpBlock { cidr: network, except })
}

fn port_match(entry: &net::NetworkPolicyPort, path: &str) -> Result<PortMatch, FieldError> {
    let at_end = format!("{path}.endPort");
    let port = match (&entry.port, entry.end_port) {
        (None, None) => PortSpec::Any,
        (None, Some(_)) => return Err(FieldError::new(at_end, "may not be given without port")),
        (Some(IntOrString::String(_)), Some(_)) => {
            return Err(FieldError::new(at_end, "may not be given when port is a name"));
        }
        (Some(IntOrString::String(name)), None) if is_port_name(name) => PortSpec::Named(name.clone()),
        (Some(IntOrString::String(name)), None) => {
            let reason = format!(
                "{name:?} is not a port name: want 1 to 15 lower case letters, digits and '-', with a letter"
            );
            return Err(FieldError::new(format!("{path}.port"), reason));
        }
        (Some(IntOrString::Int(first)), end) => {
            let first = port(*first, &format!("{path}.port"))?;
            let last = end.map_or(Ok(first), |e| port(e, &at_end))?;
            if last < first {
                return Err(FieldError::new(at_end, format!("{last} is below port {first}")));
            }
            PortSpec::Range(first, last)
        }
    };
    Ok(PortMatch { protocol: protocol(entry.protocol.as_deref(), &format!("{path}.protocol"))?, port })
}
