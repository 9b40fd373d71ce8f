use serde_json::json;

use std::path::Path;

use super::*;
use crate::config::SourceKind;
use crate::model::ObjectName;
use crate::source::kinds::Key;
use crate::source::kubernetes::decode::decode;

/// A gatherer, and what it says.
struct Bench {
    to: mpsc::Sender<Message>,
    updates: watch::Receiver<Arc<Update>>,
    state: watch::Receiver<SourceState>,
    task: tokio::task::JoinHandle<()>,
}

impl Bench {
    fn start(data_dir: Option<&Path>) -> Self {
        let (publish, updates) = watch::channel(Arc::new(Update::nothing()));
        let (publish_state, state) = watch::channel(SourceState::new(SourceKind::Kubernetes));
        let (report, _) = watch::channel(Vec::new());
        let (to, messages) = mpsc::channel(16);
        let mut gather =
            Gather::new(data_dir.map(|d| SavedState::new(d, true)), publish, publish_state, report);
        let task = tokio::spawn(async move {
            gather.run(messages).await;
            gather.end();
        });
        Self { to, updates, state, task }
    }

    async fn say(&self, message: Message) {
        self.to.send(message).await.unwrap();
    }

    /// Every kind is listed, with nothing in it, and watched.
    async fn all_listed(&self) {
        for kind in KINDS {
            self.listed(kind, &[]).await;
            self.say(Message::Open(kind)).await;
        }
    }

    async fn listed(&self, kind: &'static Kind, names: &[&str]) {
        let key = |name: &&str| {
            let namespace = if kind.namespaced { "a" } else { "" };
            let name = ObjectName { namespace: namespace.to_owned(), name: (*name).to_owned() };
            Key { kind: kind.kind, name }
        };
        let names = names.iter().map(key).collect();
        self.say(Message::Listed { kind, names, version: "7".to_owned(), again: false }).await;
    }
}

fn kind(name: &str) -> &'static Kind {
    kind_of(name).unwrap()
}

fn pod(number: u32) -> Message {
    let [_, _, a, b] = number.to_be_bytes();
    let object = json!({"metadata": {"name": format!("p{number}"), "namespace": "a"},
        "spec": {"containers": []}, "status": {"podIPs": [{"ip": format!("10.1.{a}.{b}")}]}});
    Message::Seen(Box::new(decode(kind("Pod"), object, true).unwrap()), number.to_string())
}

/// Time is tokio's own here: it passes when nothing else can.
#[tokio::test(start_paused = true)]
async fn five_thousand_changes_of_a_second_are_few_updates() {
    let mut bench = Bench::start(None);
    bench.all_listed().await;
    bench.updates.changed().await.unwrap();
    let before = bench.state.borrow().updates;
    let mut late = Duration::ZERO;
    let begin = Instant::now();
    for number in 0..5000u32 {
        bench.say(pod(number)).await;
        // A change each 200 µs; what was seen when, is looked at on the way.
        tokio::time::sleep_until(begin + Duration::from_micros(200) * (number + 1)).await;
        let seen = u32::try_from(bench.updates.borrow().model.pods.len()).unwrap();
        late = late.max(Duration::from_micros(200) * (number + 1 - seen));
    }
    while bench.updates.borrow().model.pods.len() < 5000 {
        bench.updates.changed().await.unwrap();
    }
    let updates = bench.state.borrow().updates - before;
    assert!((5..=15).contains(&updates), "{updates} updates");
    assert!(late < Duration::from_millis(100), "an event waited for {late:?}");
    assert!(begin.elapsed() < Duration::from_millis(1100), "{:?}", begin.elapsed());
    assert_eq!(bench.state.borrow().versions["pods"], "4999");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_said_before_every_kind_is_known() {
    let bench = Bench::start(None);
    bench.say(pod(1)).await;
    for kind in &KINDS[1..] {
        bench.listed(kind, &["p1"]).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!bench.updates.borrow().synced);
    assert!(bench.state.borrow().trouble().iter().any(|t| t.contains("nothing is in force")));
    bench.listed(&KINDS[0], &[]).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let update = bench.updates.borrow().clone();
    assert!(update.synced);
    assert_eq!(update.model.pods.len(), 1);
}

/// What a new list does not have is gone; a state in which nothing changed is not published again.
#[tokio::test(start_paused = true)]
async fn a_list_is_the_truth() {
    let mut bench = Bench::start(None);
    bench.all_listed().await;
    bench.say(pod(1)).await;
    bench.say(pod(2)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let first = bench.updates.borrow_and_update().clone();
    assert_eq!(first.model.pods.len(), 2);
    bench.listed(kind("Pod"), &["p1", "p2"]).await;
    bench.say(pod(1)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!bench.updates.has_changed().unwrap(), "nothing is new");
    bench.listed(kind("Pod"), &["p2"]).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let second = bench.updates.borrow_and_update().clone();
    assert_eq!(second.model.pods.keys().map(|k| &*k.name).collect::<Vec<_>>(), ["p2"]);
    let (old, new) = (first.model.pods.values().nth(1).unwrap(), second.model.pods.values().next().unwrap());
    assert!(Arc::ptr_eq(old, new), "an object that did not change is the same one");
}

/// Nobody watches a kind whose version is gone until it has been listed: that is said, and is no error.
#[tokio::test(start_paused = true)]
async fn a_stale_kind_is_away() {
    let bench = Bench::start(None);
    bench.all_listed().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(bench.state.borrow().connected);
    bench.say(Message::Stale(kind("Pod"), "too old resource version (410)".to_owned())).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let state = bench.state.borrow().clone();
    assert_eq!((state.connected, state.errors), (false, 0), "{state:?}");
    assert!(state.trouble()[0].contains("pods: to be listed again: too old"), "{:?}", state.trouble());
    bench.listed(kind("Pod"), &[]).await;
    bench.say(Message::Open(kind("Pod"))).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(bench.state.borrow().connected);
}

/// Away: what is known stays. At a start: the saved state, once it is clear that the API does not answer.
#[tokio::test(start_paused = true)]
async fn the_saved_state_bridges() {
    let dir = std::env::temp_dir().join(format!("fpgather-{}", std::process::id()));
    let bench = Bench::start(Some(&dir));
    bench.all_listed().await;
    bench.say(pod(1)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(bench.state.borrow().connected);
    bench.say(Message::Lost(kind("Pod"), "connection refused".to_owned())).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let state = bench.state.borrow().clone();
    assert!(!state.connected && state.saved_at.is_none());
    assert!(state.trouble()[0].ends_with("pods: connection refused"), "{:?}", state.trouble());
    assert_eq!(bench.updates.borrow().model.pods.len(), 1);
    let Bench { to, task, .. } = bench;
    drop(to);
    task.await.unwrap();

    let mut bench = Bench::start(Some(&dir));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!bench.updates.borrow().synced, "the API has its time to answer");
    bench.say(Message::Lost(kind("Pod"), "connection refused".to_owned())).await;
    bench.updates.changed().await.unwrap();
    assert!(bench.updates.borrow_and_update().synced);
    assert_eq!(bench.updates.borrow().model.pods.len(), 1);
    assert!(bench.state.borrow().saved_at.is_some());
    // The truth, when it comes.
    bench.say(Message::Page(Vec::new())).await;
    bench.all_listed().await;
    bench.updates.changed().await.unwrap();
    assert!(bench.updates.borrow().model.pods.is_empty());
    assert_eq!((bench.state.borrow().saved_at, bench.state.borrow().connected), (None, true));
    let Bench { to, task, .. } = bench;
    drop(to);
    task.await.unwrap();

    let file = std::fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&file, "rubbish").unwrap();
    let bench = Bench::start(Some(&dir));
    tokio::time::sleep(PATIENCE * 2).await;
    let update = bench.updates.borrow().clone();
    assert!(!update.synced);
    assert!(
        update.problems[0].to_string().contains("the saved state cannot be used"),
        "{:?}",
        update.problems
    );
    std::fs::remove_dir_all(&dir).unwrap();
}
