use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Request as HttpRequest, Response};
use serde_json::json;

use super::super::KINDS;
use super::*;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// When something was asked for, and whether a watch.
type Asked = Arc<Mutex<Vec<(Duration, bool)>>>;

fn answer(code: u16, body: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string())).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}

fn gone() -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "too old resource version",
        "reason": "Expired", "code": GONE});
    answer(GONE, &status)
}

/// A watch that says nothing, and stays open.
fn open() -> Response<Body> {
    Response::new(StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>()).boxed_unsync())
}

/// Follows pods of a server whose lists are empty, each of a version one higher, and whose watches are answered by
/// `watch`: from the time since the start and the version asked for; `None` is no connection.
fn start(
    watch: impl Fn(Duration, u32) -> Option<Response<Body>> + Send + Sync + 'static,
) -> (Asked, mpsc::Receiver<Message>) {
    let (asked, began) = (Asked::default(), Instant::now());
    let log = asked.clone();
    let watch = Arc::new(watch);
    let service = tower::service_fn(move |request: HttpRequest<kube::client::Body>| {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let is_watch = query.contains("watch=true");
        let mut log = log.lock().unwrap();
        log.push((began.elapsed(), is_watch));
        let lists = log.iter().filter(|(_, watch)| !watch).count();
        let version = query.split('&').find_map(|q| q.strip_prefix("resourceVersion=")?.parse().ok());
        let response = if is_watch {
            watch(began.elapsed(), version.expect("a version"))
        } else {
            Some(answer(200, &json!({"metadata": {"resourceVersion": lists.to_string()}, "items": []})))
        };
        std::future::ready(response.ok_or_else(|| std::io::Error::other("no connection")))
    });
    let (to, messages) = mpsc::channel(1024);
    let kind = KINDS.iter().find(|k| k.kind == "Pod").unwrap();
    tokio::spawn(follow(Client::new(service, "default"), kind, false, to));
    (asked, messages)
}

/// An outage during which the server forgot the version: what waits had grown to is over when it answers again, and
/// until the list is there the kind is not said to be seen.
#[tokio::test(start_paused = true)]
async fn after_an_outage_the_list_comes_at_once() {
    let outage = Duration::from_secs(120);
    let (asked, mut messages) =
        start(
            move |at, version| {
                if at < outage { None } else { Some(if version == 1 { gone() } else { open() }) }
            },
        );
    let mut told = Vec::new();
    while let Some(message) = messages.recv().await {
        told.push(match message {
            Message::Listed { again, .. } => format!("listed {again}"),
            Message::Lost(..) => "lost".to_owned(),
            Message::Stale(_, why) => {
                assert!(why.contains("too old"), "{why}");
                "stale".to_owned()
            }
            Message::Open(_) => "open".to_owned(),
            _ => continue,
        });
        if told.last().is_some_and(|t| t == "open") {
            break;
        }
    }
    told.dedup();
    assert_eq!(told, ["listed false", "lost", "stale", "listed true", "open"]);
    let asked = asked.lock().unwrap();
    let [.., refused, list, watch] = asked[..] else { panic!("{asked:?}") };
    assert!(refused.1 && refused.0 >= outage && !list.1 && watch.1, "{asked:?}");
    assert!(list.0 - refused.0 < Duration::from_secs(1), "{asked:?}");
}

/// A server that never has the version it gave is not listed in a loop, nor forgotten for long.
#[tokio::test(start_paused = true)]
async fn versions_that_are_gone_one_after_the_other() {
    let (asked, mut messages) = start(|_, _| Some(gone()));
    let end = Instant::now() + Duration::from_secs(120);
    while let Ok(Some(_)) = tokio::time::timeout_at(end, messages.recv()).await {}
    let lists: Vec<Duration> =
        asked.lock().unwrap().iter().filter(|(_, watch)| !watch).map(|(at, _)| *at).collect();
    assert!(lists.len() > 20 && lists.len() < 60, "{lists:?}");
    assert!(lists.windows(2).all(|w| w[1] - w[0] <= RELIST), "{lists:?}");
}
