//! What is sent to viewers as it changes: encoded once, shared by all.
//!
//! Invariants: a viewer gets the whole document, then every difference after it, or the whole document again; one that
//! does not keep up loses differences, never memory of ours; viewers have a bound. Left out: when to publish
//! (`page.rs`), sockets (`serve.rs`).

use crate::patch;
use bytes::Bytes;
use futures::Stream;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Viewers at most.
pub const VIEWERS: usize = 64;
/// Frames that a viewer may be behind.
const BEHIND: usize = 8;
/// How often a viewer hears something, so that proxies and browsers see that the line is up.
const STILL_HERE: Duration = Duration::from_secs(15);

/// See the module.
#[derive(Debug)]
pub(crate) struct Live {
    published: Mutex<Published>,
    frames: broadcast::Sender<Bytes>,
    viewers: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Published {
    document: Value,
    /// The frame of the whole document, once somebody wanted it.
    whole: Option<Bytes>,
}

/// A place that is taken as long as this is kept.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Live {
    pub(crate) fn new() -> Self {
        Self {
            published: Mutex::new(Published { document: json!({}), whole: None }),
            frames: broadcast::Sender::new(BEHIND),
            viewers: Arc::default(),
        }
    }

    /// Who looks on.
    pub(crate) fn viewers(&self) -> usize {
        self.viewers.load(Ordering::SeqCst)
    }

    /// Makes this the document, and tells viewers what changed, with the points that charts grow by.
    pub(crate) fn publish(&self, document: Value, points: Option<Value>) {
        let document = patch::without_nulls(document);
        let mut published = self.lock();
        let changed = patch::difference(&published.document, &document);
        if changed.is_none() && points.is_none() {
            return;
        }
        if changed.is_some() {
            (published.document, published.whole) = (document, None);
        }
        let frame = json!({ "state": changed.unwrap_or_else(|| json!({})), "points": points });
        // An error says that nobody looks on.
        let _ = self.frames.send(encode("patch", &frame));
    }

    /// A viewer's stream; none where all places are taken.
    pub(crate) fn watch(self: &Arc<Self>) -> Option<impl Stream<Item = Bytes> + Send + use<>> {
        let taken = self.viewers.fetch_add(1, Ordering::SeqCst);
        let place = Place(Arc::clone(&self.viewers));
        if taken >= VIEWERS {
            return None;
        }
        // In one lock with the document, so that no difference is missed or comes twice.
        let (whole, frames) = {
            let mut published = self.lock();
            (published.whole(), self.frames.subscribe())
        };
        let live = Arc::clone(self);
        let start = (Some(whole), frames, live, place);
        Some(futures::stream::unfold(start, |(first, mut frames, live, place)| async move {
            let frame = match first {
                Some(whole) => whole,
                None => match tokio::time::timeout(STILL_HERE, frames.recv()).await {
                    Ok(Ok(frame)) => frame,
                    Ok(Err(RecvError::Lagged(_))) => {
                        let mut published = live.lock();
                        frames = live.frames.subscribe();
                        published.whole()
                    }
                    Ok(Err(RecvError::Closed)) => return None,
                    Err(_) => Bytes::from_static(b": still here\n\n"),
                },
            };
            Some((frame, (None, frames, live, place)))
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Published {
    fn whole(&mut self) -> Bytes {
        self.whole.get_or_insert_with(|| encode("state", &self.document)).clone()
    }
}

/// A frame of an event stream. JSON has no line breaks of its own.
fn encode(event: &str, data: &Value) -> Bytes {
    format!("event: {event}\ndata: {data}\n\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    fn told(frame: &Bytes) -> (String, Value) {
        let text = std::str::from_utf8(frame).unwrap();
        let (event, data) = text.strip_suffix("\n\n").unwrap().split_once('\n').unwrap();
        let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        (event.strip_prefix("event: ").unwrap().to_owned(), data)
    }

    #[tokio::test]
    async fn a_viewer_gets_the_whole_document_and_then_what_changes() {
        let live = Arc::new(Live::new());
        live.publish(json!({"a": 1, "b": 2, "c": null}), None);
        let mut viewer = Box::pin(live.watch().unwrap());
        assert_eq!(told(&viewer.next().await.unwrap()), ("state".to_owned(), json!({"a": 1, "b": 2})));
        live.publish(json!({"a": 1, "b": 2}), None);
        live.publish(json!({"a": 1, "b": 3}), Some(json!([7])));
        let expected = json!({"state": {"b": 3}, "points": [7]});
        assert_eq!(told(&viewer.next().await.unwrap()), ("patch".to_owned(), expected));
        live.publish(json!({"b": 3}), None);
        assert_eq!(told(&viewer.next().await.unwrap()).1["state"], json!({"a": null}));
    }

    #[tokio::test]
    async fn frames_are_shared_and_a_slow_viewer_skips() {
        let live = Arc::new(Live::new());
        let (mut quick, mut slow) = (Box::pin(live.watch().unwrap()), Box::pin(live.watch().unwrap()));
        quick.next().await.unwrap();
        slow.next().await.unwrap();
        let mut last = Bytes::new();
        for n in 0..100 {
            live.publish(json!({"n": n}), None);
            last = quick.next().await.unwrap();
        }
        assert_eq!(told(&last).1["state"]["n"], 99);
        // Not a hundred frames: the whole document, once.
        assert_eq!(told(&slow.next().await.unwrap()), ("state".to_owned(), json!({"n": 99})));
        live.publish(json!({"n": 100}), None);
        let (a, b) = (quick.next().await.unwrap(), slow.next().await.unwrap());
        assert_eq!(a.as_ptr(), b.as_ptr(), "encoded once");
    }

    #[tokio::test]
    async fn places_have_a_bound_and_are_given_back() {
        let live = Arc::new(Live::new());
        let mut viewers: Vec<_> = (0..VIEWERS).map(|_| live.watch().unwrap()).collect();
        assert!(live.watch().is_none());
        assert_eq!(live.viewers(), VIEWERS);
        viewers.pop();
        assert!(live.watch().is_some());
        drop(viewers);
        assert_eq!(live.viewers(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_line_is_kept_up() {
        let live = Arc::new(Live::new());
        let mut viewer = Box::pin(live.watch().unwrap());
        viewer.next().await.unwrap();
        assert_eq!(viewer.next().await.unwrap(), ": still here\n\n");
    }
}
