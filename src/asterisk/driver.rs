//! The adapter's sockets: carries bytes, time and commits between the world and [`Adapter`], and decides
//! nothing.
//!
//! One task owns the adapter. It takes what has come (messages, outcomes of commits, the word that the feed has
//! grown, a timer that is due), hands it in with one view of the database, off the async threads, and does
//! what comes back. Every queue in front of it is bounded: whoever brings more waits.
//!
//! Strangers, whose address no attachment lists, are told apart in front of all queues: they are counted and
//! logged, and get nothing.

mod gate;
mod outbox;
mod sockets;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::gate::Gate;
use self::outbox::Outbox;
use self::sockets::Sockets;
use super::adapter::Adapter;
use super::event::{AttachmentId, AttachmentStatus, Destination, Effect, Event, Moment, Sight};
use super::settings::AttachmentSettings;
use crate::config::Listen;
use crate::core::replica::Outcome;
use crate::core::storage::Reads;
use crate::store::writer::{Database, Published, SubmitError};

pub use self::gate::{LINES_PER_S_MAX, Refusals};
pub use self::sockets::Bound;

/// Events that may wait for the adapter.
const EVENTS_WAITING_MAX: usize = 256;
/// Events that are handed in with one view.
const EVENTS_AT_ONCE_MAX: usize = 64;
/// After a view that could not be had.
const VIEW_RETRY: Duration = Duration::from_secs(1);
/// The status is computed at most this often.
const STATUS_GAP: Duration = Duration::from_millis(200);

/// What the driver needs beside the database.
pub struct DriverConfig {
    pub attachments: Vec<AttachmentSettings>,
    /// Drawn afresh at each start.
    pub seed: [u8; 32],
    /// The wall clock now, which the adapter's clock goes on from.
    pub now_unix_ms: Moment,
    /// Whether the node is ready.
    pub ready: Arc<AtomicBool>,
    /// Where the lines for fail2ban go.
    pub security_log: Option<PathBuf>,
    /// Reads the wall clock, for the lines of that log.
    pub unix_ms: fn() -> u64,
}

/// What the node shows of the adapter.
#[derive(Clone)]
pub struct Shown {
    pub attachments: watch::Receiver<Vec<AttachmentStatus>>,
    /// Refusals that concern no attachment, strangers included.
    pub refusals: Arc<Refusals>,
    pub listening: Vec<Listen>,
}

/// Starts the adapter on sockets that are bound already.
pub fn start<R: Reads>(
    config: DriverConfig,
    bound: Bound,
    database: Database<R>,
    tracker: &TaskTracker,
    cancel: &CancellationToken,
) -> Shown {
    let (events, inbox) = mpsc::channel(EVENTS_WAITING_MAX);
    let (show, attachments) = watch::channel(Vec::new());
    let lists = config.attachments.iter().flat_map(|one| one.accept_from.iter().copied()).collect();
    let gate = Arc::new(Gate::new(lists, config.security_log, config.unix_ms));
    let shown = Shown { attachments, refusals: gate.refusals(), listening: bound.listening() };
    let sockets = Sockets::start(bound, events.clone(), gate.clone(), tracker, cancel);
    let outboxes = config.attachments.iter().enumerate();
    let outboxes = outboxes
        .map(|(id, settings)| Outbox::start(id, settings, sockets.clone(), events.clone(), tracker, cancel))
        .collect();
    let driver = Driver {
        adapter: Some(Adapter::new(database.eid(), config.attachments, config.seed)),
        origin: (Instant::now(), config.now_unix_ms),
        ready: config.ready,
        database,
        inbox,
        commits: JoinSet::new(),
        sockets,
        outboxes,
        gate,
        show,
        shown_at: None,
    };
    let cancel = cancel.clone();
    tracker.spawn(async move { cancel.run_until_cancelled_owned(driver.run()).await });
    shown
}

struct Driver<R> {
    /// Away only while it works off the async threads.
    adapter: Option<Adapter>,
    origin: (Instant, Moment),
    ready: Arc<AtomicBool>,
    database: Database<R>,
    inbox: mpsc::Receiver<Event>,
    commits: JoinSet<(AttachmentId, Result<Outcome, SubmitError>)>,
    sockets: Arc<Sockets>,
    outboxes: Vec<Outbox>,
    gate: Arc<Gate>,
    show: watch::Sender<Vec<AttachmentStatus>>,
    shown_at: Option<Instant>,
}

impl<R: Reads> Driver<R> {
    async fn run(mut self) {
        let mut published = self.database.watch();
        let mut events = VecDeque::from([Event::Woken]);
        let mut was_ready = false;
        while self.next_events(&mut published, &mut was_ready, &mut events).await {
            if !self.hand_in(&mut events).await {
                tokio::time::sleep(VIEW_RETRY).await;
            }
        }
    }

    fn now(&self) -> Moment {
        let (origin, moment) = self.origin;
        moment + u64::try_from(origin.elapsed().as_millis()).unwrap_or(u64::MAX / 2)
    }

    /// Waits until there is something to hand in. False when the node stops.
    async fn next_events(
        &mut self,
        published: &mut watch::Receiver<Arc<Published>>,
        was_ready: &mut bool,
        events: &mut VecDeque<Event>,
    ) -> bool {
        if !events.is_empty() {
            return true;
        }
        let due = self.due(*was_ready);
        tokio::select! {
            biased;
            Some(done) = self.commits.join_next() => match committed(done) {
                Some(event) => events.push_back(event),
                None => return false,
            },
            event = self.inbox.recv() => match event {
                Some(event) => events.push_back(event),
                None => return false,
            },
            changed = published.changed() => match changed {
                Ok(()) => events.push_back(Event::Woken),
                Err(_) => return false,
            },
            () = tokio::time::sleep_until(due) => events.push_back(Event::Timer),
        }
        // Those who were committed in one group are answered in one go, so that they come back as a group.
        while let Some(done) = self.commits.try_join_next() {
            match committed(done) {
                Some(event) => events.push_back(event),
                None => return false,
            }
        }
        while events.len() < EVENTS_AT_ONCE_MAX
            && let Ok(event) = self.inbox.try_recv()
        {
            events.push_back(event);
        }
        *was_ready = self.ready.load(Ordering::Acquire);
        true
    }

    /// When the adapter's timer is due. Until the node is ready it is asked about as often as it is shown.
    fn due(&self, was_ready: bool) -> Instant {
        let (origin, moment) = self.origin;
        let next = self.adapter.as_ref().and_then(Adapter::next_timer);
        let show = self.shown_at.unwrap_or(origin) + STATUS_GAP;
        let soon = Instant::now() + Duration::from_secs(1);
        let due = next.map_or(soon, |next| origin + Duration::from_millis(next.saturating_sub(moment))).min(soon);
        if was_ready { due } else { due.min(show.max(Instant::now() + STATUS_GAP)) }
    }

    /// Hands in all events with one view. False if there is no view: they stay.
    async fn hand_in(&mut self, events: &mut VecDeque<Event>) -> bool {
        let (database, now, ready) = (self.database.clone(), self.now(), self.ready.load(Ordering::Acquire));
        let mut adapter = self.adapter.take().expect("it comes back each time");
        let batch = std::mem::take(events);
        let show = self.shown_at.is_none_or(|at| at.elapsed() >= STATUS_GAP);
        let work = tokio::task::spawn_blocking(move || {
            let published = database.published();
            let view = match database.view() {
                Ok(view) => view,
                Err(error) => return (adapter, Err((error, batch))),
            };
            let sight = Sight { read: &view.read, ledger: &published.ledger, ready };
            let mut effects = Vec::new();
            for event in batch {
                effects.extend(adapter.handle(event, now, sight));
            }
            let status = show.then(|| adapter.status(sight));
            (adapter, Ok((effects, status)))
        });
        let (adapter, result) = match work.await {
            Ok(done) => done,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        self.adapter = Some(adapter);
        match result {
            Ok((effects, status)) => {
                if let Some(status) = status {
                    self.show.send_replace(status);
                    self.shown_at = Some(Instant::now());
                }
                for effect in effects {
                    self.carry_out(effect).await;
                }
                true
            }
            Err((error, batch)) => {
                tracing::error!(%error, "the adapter cannot read the store");
                *events = batch;
                false
            }
        }
    }

    async fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send { to: Destination::Reply(remote), bytes } => self.sockets.reply(remote, bytes).await,
            Effect::Send { to: Destination::Asterisk(attachment), bytes } => self.outboxes[attachment].send(bytes),
            Effect::Submit { attachment, input } => {
                let database = self.database.clone();
                self.commits.spawn(async move { (attachment, database.submit(input).await) });
            }
            Effect::Refused(refused) => self.gate.refused(&refused),
        }
    }
}

type Done = Result<(AttachmentId, Result<Outcome, SubmitError>), JoinError>;

/// None when the writer has stopped.
fn committed(done: Done) -> Option<Event> {
    let (attachment, outcome) = match done {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    };
    let outcome = match outcome {
        Ok(outcome) => Ok(outcome),
        Err(SubmitError::Store(error)) => Err(error),
        Err(SubmitError::Stopping) => return None,
    };
    Some(Event::Committed { attachment, outcome })
}
