//! An object of the API to one of ours, by the same functions that read manifests.
#![forbid(unsafe_code)]

use serde_json::Value;

use super::super::document::Document;
use super::super::kinds::{Key, Kind, Object, POD_ANNOTATIONS, closed};
use super::super::{Problem, Severity};

/// An object as the API has it now.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Which.
    pub(super) key: Key,
    /// `None` when it cannot be honoured; the problems say why.
    pub(super) object: Option<Object>,
    /// What is in force of one that cannot, and never could.
    pub(super) closed: Option<Object>,
    /// It is being deleted.
    pub(super) leaving: bool,
    /// `metadata.uid`.
    pub(super) uid: Box<str>,
    /// What is wrong with it.
    pub(super) problems: Vec<Problem>,
}

/// `apiVersion` of a kind we follow, by its name.
pub(super) fn api_version(kind: &str) -> String {
    super::KINDS.iter().find(|k| k.kind == kind).map(Kind::api).unwrap_or_default()
}

/// The key of `value`; `None` if it has no name.
pub(super) fn key(kind: &'static Kind, value: &Value) -> Option<Key> {
    let text = |key: &str| Some(value.get("metadata")?.get(key)?.as_str()?.to_owned());
    let namespace = if kind.namespaced { text("namespace").unwrap_or_default() } else { String::new() };
    let name = text("name").filter(|n| !n.is_empty())?;
    Some(Key { kind: kind.kind, name: crate::model::ObjectName { namespace, name } })
}

/// Decodes `value`, an object of this kind; `None` if it has no name, which the API's objects always have.
///
/// `annotations`: whether what a pod's annotations say of devices is honoured. If not, it is not looked at either: a
/// mistake there keeps nothing else of the pod out of force.
pub(super) fn decode(kind: &'static Kind, mut value: Value, annotations: bool) -> Option<Seen> {
    let key = key(kind, &value)?;
    let metadata = value.get_mut("metadata").and_then(Value::as_object_mut)?;
    // The larger half of many an object.
    metadata.remove("managedFields");
    if kind.kind == "Pod"
        && !annotations
        && let Some(written) = metadata.get_mut("annotations").and_then(Value::as_object_mut)
    {
        written.retain(|key, _| !POD_ANNOTATIONS.contains(&key.as_str()));
    }
    let leaving = metadata.get("deletionTimestamp").is_some_and(|t| !t.is_null());
    let uid = metadata.get("uid").and_then(Value::as_str).unwrap_or_default().into();
    let document = Document::of_api(kind, value);
    let mut problems = Vec::new();
    let loaded = (kind.load)(&document, &mut problems);
    // Of fields that a newer server has, those may change the meaning of what we do know.
    let decisive = matches!(kind.kind, "NetworkPolicy" | "Service");
    problems.retain(|p| decisive && p.reason.starts_with("spec."));
    let object = loaded
        .map_err(|faults| problems.extend(faults.into_iter().map(|f| document.problem(Severity::Error, f))))
        .ok();
    let closed = if object.is_none() { closed(kind, &document) } else { None };
    Some(Seen { key, object, closed, leaving, uid, problems })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Origin;

    fn kind(name: &str) -> &'static Kind {
        super::super::KINDS.iter().find(|k| k.kind == name).expect("a kind we follow")
    }

    /// List items have neither apiVersion nor kind; what the dataplane cannot do with is named with the object.
    #[test]
    fn objects_of_lists() {
        let pod = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u-1", "managedFields": [{"manager": "m"}],
            "deletionTimestamp": "2026-01-01T00:00:00Z", "annotations": {"fastpath.io/mac": "nonsense"}},
            "spec": {"containers": [], "ofTheFuture": 1}});
        let seen = decode(kind("Pod"), pod, true).unwrap();
        assert!(seen.object.is_none() && seen.leaving);
        assert_eq!(&*seen.uid, "u-1");
        let texts: Vec<String> = seen.problems.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(texts[0].starts_with("Pod shop/web: metadata.annotations.fastpath.io/mac: "), "{texts:?}");

        let policy = json!({"metadata": {"name": "p", "namespace": "shop", "ofTheFuture": 1},
            "spec": {"podSelector": {}, "ingress": [{"ofTheFuture": 1}]}});
        let seen = decode(kind("NetworkPolicy"), policy, true).unwrap();
        let Some(Object::NetworkPolicy(policy)) = &seen.object else { panic!("{seen:?}") };
        assert_eq!((&policy.origin, &policy.ingress[0].origin), (&Origin::Api, &Origin::Api));
        assert_eq!(seen.problems.len(), 1, "{:?}", seen.problems);
        assert_eq!(seen.problems[0].severity, Severity::Warning);
        assert!(
            seen.problems[0].to_string().starts_with("NetworkPolicy shop/p: spec.ingress[0].ofTheFuture")
        );

        let node = json!({"metadata": {"name": "n"}, "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}});
        assert!(
            decode(kind("Node"), node, true).unwrap().problems[0]
                .to_string()
                .starts_with("Node n: status.addresses[0]")
        );
        assert!(decode(kind("Node"), json!({"metadata": {}}), true).is_none());
    }

    /// Whoever may create pods writes annotations: unless the administrator says otherwise they claim nothing, and a
    /// mistake in one does not keep the pod's labels, by which policies select it, as they were.
    #[test]
    fn annotations_of_pods_are_ignored() {
        let pod = |annotations: Value| {
            json!({"metadata": {"name": "web", "namespace": "shop", "labels": {"app": "x"}, "annotations": annotations},
                "spec": {"containers": []}})
        };
        for written in [
            json!({"fastpath.io/interface": "fp-host", "fastpath.io/mac": "02:00:00:00:00:01", "fastpath.io/netns": "/run/netns/x"}),
            json!({"fastpath.io/interface": "a/b", "fastpath.io/mac": "nonsense", "fastpath.io/netns": "x"}),
        ] {
            let seen = decode(kind("Pod"), pod(written), false).unwrap();
            let Some(Object::Pod(pod)) = &seen.object else { panic!("{seen:?}") };
            assert_eq!((&pod.interface, &pod.mac, &pod.netns), (&None, &None, &None));
            assert_eq!((&*pod.labels["app"], seen.problems.len()), ("x", 0));
        }
        // Those of nodes are the administrator's.
        let node = json!({"metadata": {"name": "n", "annotations": {"fastpath.io/vtep-mac": "nonsense"}}});
        assert_eq!(decode(kind("Node"), node, false).unwrap().problems.len(), 1);
    }
}
