//! `healthCheckNodePort` of services with `externalTrafficPolicy: Local`: load balancers ask it which nodes have a backend.
//!
//! Answers are kube-proxy's: 200 with ready backends on this node, else 503. The sockets are bound to every address of the
//! node, in both families, and are the kernel's: the uplink's program passes what is for them.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hyper::StatusCode;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Daemon;
use crate::http::{Answer, Get, Handler, Reply, listen, serve};
use crate::model::{Model, ObjectName, ServiceKind};

/// What a load balancer is told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    service: ObjectName,
    /// Addresses of ready backends on this node.
    local: usize,
    /// Whether this node forwards.
    healthy: bool,
}

/// The ports that are served.
#[derive(Debug, Default)]
pub(super) struct HealthPorts {
    /// What `wanted` and `conflicts` were made from.
    seen: Option<Arc<Model>>,
    wanted: BTreeMap<u16, State>,
    conflicts: Vec<String>,
    open: BTreeMap<u16, Open>,
    /// What could not be served.
    pub(super) problems: Vec<String>,
}

#[derive(Debug)]
struct Open {
    state: watch::Sender<State>,
    /// Servers by family; `None` while it could not be bound.
    tasks: [Option<JoinHandle<()>>; 2],
}

impl HealthPorts {
    /// Serves the ports of the model's services, and no others. What could not be bound is tried again each time.
    fn follow(&mut self, model: &Arc<Model>, node: &str, healthy: bool) {
        if !self.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, model)) {
            (self.wanted, self.conflicts) = wanted(model, node);
            self.seen = Some(Arc::clone(model));
        }
        self.problems.clone_from(&self.conflicts);
        self.open.retain(|port, _| self.wanted.contains_key(port));
        for (port, state) in &self.wanted {
            let state = State { healthy, ..state.clone() };
            let open = self
                .open
                .entry(*port)
                .or_insert_with(|| Open { state: watch::Sender::new(state.clone()), tasks: [None, None] });
            open.bind(*port, &state.service, &mut self.problems);
            open.state.send_replace(state);
        }
    }

    /// Says on all ports whether this node forwards.
    fn set_healthy(&self, healthy: bool) {
        for open in self.open.values() {
            open.state.send_if_modified(|now| std::mem::replace(&mut now.healthy, healthy) != healthy);
        }
    }
}

impl Open {
    fn bind(&mut self, port: u16, service: &ObjectName, problems: &mut Vec<String>) {
        let families: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        for (addr, task) in families.into_iter().zip(&mut self.tasks).filter(|(_, task)| task.is_none()) {
            match listen((addr, port).into()) {
                Ok(listener) => {
                    let handler = Arc::new(Served(self.state.subscribe()));
                    *task = Some(tokio::spawn(serve(listener, handler)));
                }
                // The machine has no IPv6.
                Err(e) if e.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {}
                Err(e) => problems.push(format!(
                    "service {service}: healthCheckNodePort {port} is not served on {addr}: {e}"
                )),
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.tasks.iter().flatten().for_each(JoinHandle::abort);
    }
}

/// Ports and what each says, and what is wrong: of two services with one port the first by name has it.
fn wanted(model: &Model, node: &str) -> (BTreeMap<u16, State>, Vec<String>) {
    let mut problems = Vec::new();
    let mut ports: BTreeMap<u16, &ObjectName> = BTreeMap::new();
    let local = model.services.values().filter(|s| s.kind == ServiceKind::LoadBalancer && s.external_local);
    for (name, port) in local.filter_map(|s| Some((&s.name, s.health_check_node_port?))) {
        let first = *ports.entry(port).or_insert(name);
        if first != name {
            problems.push(format!("service {name}: healthCheckNodePort {port} is that of service {first}"));
        }
    }
    let mut addresses: BTreeMap<&ObjectName, BTreeSet<IpAddr>> =
        ports.values().map(|name| (*name, BTreeSet::new())).collect();
    for slice in model.slices.values().filter(|s| s.ipv4.is_some()) {
        let Some(set) = slice.service.as_ref().and_then(|name| addresses.get_mut(name)) else { continue };
        let here = slice.endpoints.iter().filter(|e| e.ready && e.node.as_deref() == Some(node));
        set.extend(here.map(|e| e.address));
    }
    let state = |name: &ObjectName| State {
        service: name.clone(),
        local: addresses.get(name).map_or(0, BTreeSet::len),
        healthy: false,
    };
    (ports.into_iter().map(|(port, name)| (port, state(name))).collect(), problems)
}

/// Answers on one port, whatever the path.
struct Served(watch::Receiver<State>);

impl Handler for Served {
    fn get<'a>(&'a self, _: Get<'a>) -> Answer<'a> {
        let reply = answer(&self.0.borrow());
        Box::pin(std::future::ready(reply))
    }
}

fn answer(state: &State) -> Reply {
    let State { service, local, healthy } = state;
    // As kube-proxy writes it, blanks and all.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {},\n\t\t\"name\": {}\n\t}},\n\t\"localEndpoints\": {local},\n\t\
         \"serviceProxyHealthy\": {healthy}\n}}",
        serde_json::Value::from(service.namespace.as_str()),
        serde_json::Value::from(service.name.as_str()),
    );
    let good = *local > 0 && *healthy;
    Reply {
        content_type: "application/json",
        headers: vec![("x-load-balancing-endpoint-weight", local.to_string())],
        ..Reply::text(if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
    }
}

impl Daemon {
    /// Brings the served ports in line with the source; what cannot be served goes to `kernel_problems`.
    pub(super) fn serve_health_ports(&mut self) {
        let healthy = self.forwards();
        self.health_ports.follow(&self.update.model, &self.node, healthy);
        self.kernel_problems.extend(self.health_ports.problems.iter().cloned());
    }

    /// Says again whether this node forwards.
    pub(super) fn refresh_health_ports(&self) {
        if self.health_ports.open.is_empty() {
            return;
        }
        self.health_ports.set_healthy(self.forwards());
    }

    fn forwards(&self) -> bool {
        crate::http::health::passed(&self.readyz())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::tests::Folder;
    use crate::source::load_dir;

    const CLUSTER: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  externalTrafficPolicy: Local
  healthCheckNodePort: 30500
  ports: [{name: http, port: 80, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: zeb, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.2
  externalTrafficPolicy: Local
  healthCheckNodePort: 30500
  ports: [{name: http, port: 80, nodePort: 30081}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.0.0.1], nodeName: a, conditions: {ready: true}}
- {addresses: [10.0.0.2], nodeName: a, conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.0.0.3], nodeName: b, conditions: {ready: true}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-2, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.0.0.1], nodeName: a}
- {addresses: [10.0.0.4], nodeName: a}
"#;

    #[test]
    fn ready_backends_of_this_node_are_counted_once() {
        let model = load_dir(&Folder::new(CLUSTER).0).unwrap().model;
        for (node, local) in [("a", 2), ("b", 1), ("c", 0)] {
            let (wanted, problems) = wanted(&model, node);
            let service = ObjectName { namespace: "shop".into(), name: "web".into() };
            assert_eq!(wanted, [(30_500, State { service, local, healthy: false })].into(), "{node}");
            assert_eq!(problems, ["service shop/zeb: healthCheckNodePort 30500 is that of service shop/web"]);
        }
    }

    #[test]
    fn answers_are_kube_proxys() {
        let service = ObjectName { namespace: "shop".into(), name: "web".into() };
        for (local, healthy, status) in [(2, true, 200), (0, true, 503), (2, false, 503)] {
            let reply = answer(&State { service: service.clone(), local, healthy });
            assert_eq!(reply.status.as_u16(), status);
            let body: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
            let want = serde_json::json!({
                "service": {"namespace": "shop", "name": "web"},
                "localEndpoints": local,
                "serviceProxyHealthy": healthy,
            });
            assert_eq!(body, want);
            assert_eq!(reply.content_type, "application/json");
            assert_eq!(reply.headers, [("x-load-balancing-endpoint-weight", local.to_string())]);
        }
    }

    #[tokio::test]
    async fn ports_come_and_go_and_the_taken_are_told() {
        // Somebody has one of the two families of a port.
        let taken = listen((Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut model = (*load_dir(&Folder::new(CLUSTER).0).unwrap().model).clone();
        model.services.retain(|name, _| name.name == "web");
        let service = model.services.values_mut().next().unwrap();
        Arc::make_mut(service).health_check_node_port = Some(port);
        let mut model = Arc::new(model);
        let mut ports = HealthPorts::default();
        ports.follow(&model, "a", true);
        assert_eq!(ports.problems.len(), 1, "{:?}", ports.problems);
        assert!(ports.problems[0].starts_with(&format!(
            "service shop/web: healthCheckNodePort {port} is not served on 0.0.0.0: Address"
        )));
        drop(taken);
        ports.follow(&model, "a", true);
        assert_eq!(ports.problems, [""; 0]);
        let stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        drop(stream);
        model = Arc::new(Model::default());
        ports.follow(&model, "a", true);
        // The server's task ends at its next turn.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        drop(listen((Ipv4Addr::UNSPECIFIED, port).into()).unwrap());
    }
}
