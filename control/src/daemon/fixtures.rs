//! A small cluster whose node `a` this is, for tests.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use fastpath::snapshot::Snapshot;

use crate::compile::tables::{SnatSettings, Tables};
use crate::explain::tests::Folder;
use crate::model::Model;
use crate::source::load_dir;

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Node `a`, and service `web` with a load balancer's address; then the documents of `more`. All in YAML's flow style.
pub(super) fn cluster(pod_cidrs: &str, external_ips: &str, ports: &str, more: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Node
metadata: {{name: a}}
spec: {{podCIDRs: {pod_cidrs}}}
status: {{addresses: [{{type: InternalIP, address: 192.0.2.1}}, {{type: InternalIP, address: "2001:db8::1"}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.1, "fd96::1"]
  externalIPs: {external_ips}
  loadBalancerIP: "2001:db8:1::9"
  ports: {ports}
---
{more}"#
    )
}

/// The model of manifests, and the tables that it gives to a snapshot.
pub(super) fn tables(manifests: &str, snapshot: &mut Snapshot) -> (Arc<Model>, Tables) {
    let model = load_dir(&Folder::new(manifests).0).unwrap().model;
    let settings = SnatSettings { outgoing: true, ports: (40_000, 41_000), inside: Vec::new() };
    let mut tables = Tables::new("a", 1, settings);
    tables.fill(&model, &BTreeMap::new(), snapshot);
    (model, tables)
}
