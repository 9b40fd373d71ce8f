//! The processes of an API server.

use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client::Client;

/// Longest time from a program's start to its readiness.
const LIMIT: Duration = Duration::from_secs(120);

/// Service networks of the server.
pub(crate) const SERVICE_CIDRS: &str = "10.96.0.0/16,fd00:96::/112";

/// Token of the administrator.
pub(crate) const ADMIN: &str = "admin-token";
/// Token of user `fastpath`, who may do what a test allows.
pub(crate) const AGENT: &str = "agent-token";

/// The account that `configs/k8s/install.yaml` makes for the daemon: its namespace, its name, its name as a user.
const ACCOUNT: (&str, &str) = ("fastpath-system", "fastpath");
const ACCOUNT_USER: &str = "system:serviceaccount:fastpath-system:fastpath";

/// What is installed on clusters.
pub(crate) const INSTALL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/k8s/install.yaml");

/// Controllers that tests need: they make EndpointSlices, and end namespaces.
const CONTROLLERS: &str = "endpoints-controller,endpointslice-controller,namespace-controller";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Where and how a server runs.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Network namespace (a file of `/run/netns`) to run in; `None` is the test's own.
    pub(crate) netns: Option<PathBuf>,
    /// Address to listen on.
    pub(crate) address: IpAddr,
    /// Runs kube-controller-manager too.
    pub(crate) controllers: bool,
    /// More arguments of kube-apiserver.
    pub(crate) args: Vec<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Options { netns: None, address: IpAddr::from([127, 0, 0, 1]), controllers: false, args: Vec::new() }
    }
}

/// A running API server. The order of the fields is the order in which they end.
#[derive(Debug)]
pub(crate) struct Server {
    client: Option<Client>,
    controllers: Option<Process>,
    apiserver: Option<Process>,
    etcd: Option<Process>,
    options: Options,
    ports: Ports,
    dir: Dir,
}

/// Ports it listens on.
#[derive(Clone, Copy, Debug)]
struct Ports {
    api: u16,
    etcd: u16,
    peers: u16,
    controllers: u16,
}

/// The server's folder, removed on drop.
#[derive(Debug)]
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// One program.
#[derive(Debug)]
struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    fn log_text(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        format!("--- {}\n{}", self.name, lines[lines.len().saturating_sub(20)..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Not asked nicely: kube-apiserver would wait for watches to end.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The folder of the programs.
fn assets() -> PathBuf {
    let dir = std::env::var_os("KUBEBUILDER_ASSETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kube/bin"), PathBuf::from);
    assert!(
        dir.join("kube-apiserver").exists(),
        "no kube-apiserver in {}: run scripts/lib/kube.sh, or set KUBEBUILDER_ASSETS",
        dir.display()
    );
    dir
}

/// Whether kube-controller-manager is there (a `KUBEBUILDER_ASSETS` need not have it).
pub(crate) fn has_controllers() -> bool {
    assets().join("kube-controller-manager").exists()
}

impl Server {
    /// Starts everything and waits until it answers.
    pub(crate) fn start(options: Options) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = Dir(std::env::temp_dir().join(format!("fpapi-{}-{number}", std::process::id())));
        std::fs::create_dir_all(dir.0.join("pki")).expect("make the server's folder");
        let ports = if options.netns.is_some() {
            Ports { api: 6443, etcd: 2379, peers: 2380, controllers: 10257 }
        } else {
            let [api, etcd, peers, controllers] = free_ports();
            Ports { api, etcd, peers, controllers }
        };
        make_keys(&dir.0.join("pki"), options.address);
        let mut server =
            Server { client: None, controllers: None, apiserver: None, etcd: None, options, ports, dir };
        server.write_kubeconfigs();
        server.start_etcd();
        server.start_apiserver();
        if server.options.controllers {
            server.start_controllers();
        }
        server
    }

    /// Objects in and out, as the administrator.
    pub(crate) fn client(&self) -> &Client {
        self.client.as_ref().expect("made at the start")
    }

    /// Address of the API.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", SocketAddr::new(self.options.address, self.ports.api))
    }

    /// Kubeconfig of the administrator.
    pub(crate) fn admin_config(&self) -> PathBuf {
        self.dir.0.join("admin.kubeconfig")
    }

    /// Kubeconfig of user `fastpath`.
    pub(crate) fn agent_config(&self) -> PathBuf {
        self.dir.0.join("agent.kubeconfig")
    }

    /// Kubeconfig of the daemon's own account: made, and allowed what it is allowed, as `configs/k8s/install.yaml` says, with
    /// a token such as the kubelet gives its pods.
    pub(crate) fn account_config(&self) -> PathBuf {
        let text = std::fs::read_to_string(INSTALL).expect("configs/k8s/install.yaml");
        let mut objects = fastpath_control::source::documents(&text).expect("YAML");
        objects.retain(|o| o["kind"] != "DaemonSet" && o["kind"] != "ConfigMap");
        self.client().apply(&objects);
        let token = self.client().token(ACCOUNT);
        self.write_kubeconfig("account", &token, self.ports.api);
        self.dir.0.join("account.kubeconfig")
    }

    /// What the daemon's account asked for, whatever became of it.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.audit_log()).expect("the audit log");
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let events = whole.lines().map(|l| serde_json::from_str::<Value>(l).expect("JSON"));
        events.filter(|e| e["user"]["username"] == ACCOUNT_USER).collect()
    }

    fn audit_log(&self) -> PathBuf {
        self.dir.0.join("audit.log")
    }

    /// kubectl as the administrator; its output.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let mut command = self.inside(&assets().join("kubectl").display().to_string());
        // It caches what it learns of servers at home.
        command.env("HOME", &self.dir.0).arg("--kubeconfig").arg(self.admin_config()).args(args);
        run_ok(&mut command)
    }

    /// A folder for what belongs to the server's test.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// Kills kube-apiserver: connections break in the middle.
    pub(crate) fn kill_apiserver(&mut self) {
        self.apiserver = None;
    }

    /// Starts kube-apiserver with the state that etcd has.
    pub(crate) fn start_apiserver(&mut self) {
        self.start_at(self.ports.api, "admin");
    }

    /// The same on another port, where only [`Server::client`] finds it.
    pub(crate) fn start_hidden_apiserver(&mut self) {
        let [port, ..] = free_ports();
        self.write_kubeconfig("hidden", ADMIN, port);
        self.start_at(port, "hidden");
    }

    fn start_at(&mut self, api: u16, config: &str) {
        let pki = self.dir.0.join("pki");
        let pki = |name: &str| pki.join(name).display().to_string();
        let etcd = self.ports.etcd;
        let mut args = vec![
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            format!("--bind-address={}", self.options.address),
            format!("--advertise-address={}", self.options.address),
            format!("--secure-port={api}"),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--cert-dir={}", pki("")),
            format!("--tls-cert-file={}", pki("server.crt")),
            format!("--tls-private-key-file={}", pki("server.key")),
            format!("--token-auth-file={}", pki("tokens.csv")),
            "--anonymous-auth=false".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", pki("sa.pub")),
            format!("--service-account-signing-key-file={}", pki("sa.key")),
            format!("--service-cluster-ip-range={SERVICE_CIDRS}"),
            "--etcd-compaction-interval=0".to_owned(),
            format!("--audit-policy-file={}", pki("audit.json")),
            format!("--audit-log-path={}", self.audit_log().display()),
            // Pods need no ServiceAccount, so that no controller need make one.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            // Tests ask as fast as they can.
            "--max-requests-inflight=2000".to_owned(),
            "--max-mutating-requests-inflight=1000".to_owned(),
        ];
        args.extend(self.options.args.iter().map(|a| (*a).to_owned()));
        self.apiserver = Some(self.spawn("kube-apiserver", &args));
        let config = self.dir.0.join(format!("{config}.kubeconfig"));
        let client = self.client.insert(Client::start(&config, self.options.netns.as_deref()));
        let end = Instant::now() + LIMIT;
        while client.get_text("/readyz").is_err() {
            let process = self.apiserver.as_mut().expect("just started");
            let ended = process.child.try_wait().expect("wait for kube-apiserver");
            assert!(
                ended.is_none() && Instant::now() < end,
                "kube-apiserver: {ended:?}\n{}",
                process.log_text()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        // Made by the server itself a moment after it is ready; Pods of tests live there.
        while client.get("v1", "Namespace", "", "default").is_err() {
            assert!(Instant::now() < end, "no namespace default");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Compacts etcd up to now: versions before are gone.
    pub(crate) fn compact(&self) {
        let status = self.etcd_call("/v3/maintenance/status", &json!({}));
        let revision = status["header"]["revision"].as_str().expect("a revision").to_owned();
        self.etcd_call("/v3/kv/compaction", &json!({"revision": revision, "physical": true}));
    }

    /// A call of etcd's JSON gateway.
    fn etcd_call(&self, path: &str, body: &Value) -> Value {
        let url = format!("http://127.0.0.1:{}{path}", self.ports.etcd);
        let mut command = self.inside("curl");
        command.args(["-sSf", "-X", "POST", "-d", &body.to_string(), &url]);
        serde_json::from_str(&run_ok(&mut command)).expect("etcd answers in JSON")
    }

    fn start_etcd(&mut self) {
        let Ports { etcd, peers, .. } = self.ports;
        let (client, peer) = (format!("http://127.0.0.1:{etcd}"), format!("http://127.0.0.1:{peers}"));
        let args = [
            "--name=t".to_owned(),
            format!("--data-dir={}", self.dir.0.join("etcd").display()),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=t={peer}"),
        ];
        self.etcd = Some(self.spawn("etcd", &args));
        let end = Instant::now() + LIMIT;
        let health = format!("{client}/health");
        while !self
            .inside("curl")
            .args(["-sf", &health])
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
        {
            let process = self.etcd.as_mut().expect("just started");
            let ended = process.child.try_wait().expect("wait for etcd");
            assert!(ended.is_none() && Instant::now() < end, "etcd: {ended:?}\n{}", process.log_text());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn start_controllers(&mut self) {
        let config = self.admin_config().display().to_string();
        let args = [
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.ports.controllers),
            format!("--cert-dir={}", self.dir.0.join("pki").display()),
            format!("--kubeconfig={config}"),
            format!("--authentication-kubeconfig={config}"),
            format!("--authorization-kubeconfig={config}"),
            "--leader-elect=false".to_owned(),
            format!("--controllers={CONTROLLERS}"),
            "--use-service-account-credentials=false".to_owned(),
            "--kube-api-qps=1000".to_owned(),
            "--kube-api-burst=2000".to_owned(),
            "--concurrent-service-endpoint-syncs=10".to_owned(),
        ];
        self.controllers = Some(self.spawn("kube-controller-manager", &args));
    }

    /// A command inside the server's namespace.
    fn inside(&self, program: &str) -> Command {
        let mut command = match &self.options.netns {
            Some(path) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", path.display())).arg("--").arg(program);
                command
            }
            None => Command::new(program),
        };
        command.stdin(Stdio::null());
        command
    }

    fn spawn(&self, name: &'static str, args: &[String]) -> Process {
        let log = self.dir.0.join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log).expect("open a log");
        let errors = out.try_clone().expect("two handles of the log");
        // When the test process is killed, its servers go with it.
        let program = assets().join(name);
        let child = self
            .inside("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(args)
            .stdout(out)
            .stderr(errors)
            .spawn()
            .expect("setpriv starts (package util-linux)");
        Process { name, child, log }
    }

    fn write_kubeconfigs(&self) {
        self.write_kubeconfig("admin", ADMIN, self.ports.api);
        self.write_kubeconfig("agent", AGENT, self.ports.api);
    }

    fn write_kubeconfig(&self, name: &str, token: &str, port: u16) {
        let url = format!("https://{}", SocketAddr::new(self.options.address, port));
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "x",
            "clusters": [{"name": "c", "cluster": {
                "server": url, "certificate-authority": self.dir.0.join("pki/ca.crt"),
            }}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        });
        let path = self.dir.0.join(format!("{name}.kubeconfig"));
        std::fs::write(path, config.to_string()).expect("write a kubeconfig");
    }
}

/// Ports that nobody listens on.
fn free_ports() -> [u16; 4] {
    let listeners = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|l| l.local_addr().expect("a bound socket").port())
}

/// Keys of the server and of service accounts, by openssl(1).
fn make_keys(dir: &Path, address: IpAddr) {
    let openssl = |args: &str| {
        let mut command = Command::new("openssl");
        run_ok(command.args(args.split(' ')).current_dir(dir));
    };
    let curve = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(&format!(
        "req -x509 {curve} -days 30 -subj /CN=test-ca -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.crt"
    ));
    openssl(&format!("req -new {curve} -subj /CN=kube-apiserver -keyout server.key -out server.csr"));
    let names = format!(
        "extendedKeyUsage=serverAuth\nsubjectAltName=IP:{address},IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,\
         DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc\n"
    );
    let mut file = File::create(dir.join("server.ext")).expect("write the certificate's names");
    file.write_all(names.as_bytes()).expect("write the certificate's names");
    openssl(
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile server.ext -out server.crt",
    );
    openssl("ecparam -name prime256v1 -genkey -noout -out sa.key");
    openssl("ec -in sa.key -pubout -out sa.pub");
    let tokens = format!("{ADMIN},admin,admin,\"system:masters\"\n{AGENT},fastpath,fastpath\n");
    std::fs::write(dir.join("tokens.csv"), tokens).expect("write the tokens");
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "rules": [{"level": "Metadata", "users": [ACCOUNT_USER]}, {"level": "None"}],
    });
    std::fs::write(dir.join("audit.json"), policy.to_string()).expect("write the audit policy");
}

/// Runs a command to its end; panics with its output when it fails.
fn run_ok(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {}\n{errors}", out.status);
    String::from_utf8_lossy(&out.stdout).into_owned()
}
