//! The writer thread: the one owner of the [`Replica`], and the handle that everything else has.
//!
//! It takes everything that waits in its inbox, carries it out as one batch in one transaction (group
//! commit), and only then releases what came of it: answers, wake-ups of followers, the published state.
//! Reads do not pass through it: they are read transactions of the store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::core::clock::{Hlc, UnixMs};
use crate::core::eid::Eid;
use crate::core::losers::{Loser, Losers};
use crate::core::path::Family;
use crate::core::reconcile::Snapshot;
use crate::core::record::{Classes, RecordKey};
use crate::core::replica::{Committed, Input, Ledger, Outcome, Replica};
use crate::core::storage::{Reads, Run, Store, StoreError};
use crate::core::view::View;

/// Limits of the writer.
#[derive(Clone, Copy, Debug)]
pub struct WriterLimits {
    /// Inputs that may wait; beyond it those who bring more wait.
    pub queue_max: usize,
    /// Inputs in one batch at most.
    pub batch_max: usize,
}

impl Default for WriterLimits {
    fn default() -> Self {
        Self { queue_max: 8_192, batch_max: 1_024 }
    }
}

/// Why an input got no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("the node is stopping")]
    Stopping,
}

/// What is durable, as the writer last published it.
#[derive(Clone, Debug)]
pub struct Published {
    pub ledger: Ledger,
    pub run: Run,
    /// The greatest moment that the hybrid clock has made or observed.
    pub clock_last: Hlc,
    /// The error of the last batch, if it failed.
    pub fault: Option<StoreError>,
}

/// A batch, for those who count: what it did or why it failed, how many inputs, and how long it took.
pub struct BatchReport<'a> {
    pub result: Result<&'a Committed, &'a StoreError>,
    pub inputs: usize,
    pub took: Duration,
}

type Answer = oneshot::Sender<Result<Outcome, SubmitError>>;

enum Job {
    Input {
        input: Input,
        answer: Answer,
    },
    /// Between two batches, so that what is pinned belongs with a read that begins in there.
    Pin {
        family: Family,
        begin: Begin,
    },
}

type Begin = Box<dyn FnOnce(Option<Snapshot<()>>) + Send>;

/// From so many answers on they are handed out inside the runtime: a wake from the writer's own thread is a
/// system call, which for a thousand writers took longer than the puts themselves.
const HAND_OVER_MIN: usize = 32;
/// Batches whose answers may wait to be handed out. The writer waits beyond that.
const HAND_OVER_QUEUE_MAX: usize = 8;

/// Answers that are due, on their way into the runtime.
type Due = Vec<(Answer, Outcome)>;

/// Wakes those who follow a family, by the scope that they asked for: else every record that arrives would
/// wake every follower only to be told that there is nothing for it.
#[derive(Clone, Debug, Default)]
struct Wakes(Arc<Mutex<WakesByScope>>);

/// The writes that lost since the start, shared with those who ask about them.
type SharedLosers = Arc<Mutex<Losers>>;

type WakesByScope = BTreeMap<(Family, Classes), watch::Sender<u64>>;

impl Wakes {
    fn subscribe(&self, family: &Family, classes: Classes) -> watch::Receiver<u64> {
        let mut wakes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wakes.entry((family.clone(), classes)).or_default().subscribe()
    }

    fn wake(&self, touched: &BTreeMap<Family, Classes>, head: u64) {
        let mut wakes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wakes.retain(|_, wake| wake.receiver_count() > 0);
        for ((family, classes), wake) in wakes.iter() {
            if touched.get(family).is_some_and(|touched| touched.intersects(*classes)) {
                wake.send_replace(head);
            }
        }
    }
}

/// The handle of the database of a node. Cheap to clone.
pub struct Database<R> {
    eid: Eid,
    queue: mpsc::Sender<Job>,
    reads: R,
    published: watch::Receiver<Arc<Published>>,
    wakes: Wakes,
    losers: SharedLosers,
    now: fn() -> UnixMs,
}

impl<R: Clone> Clone for Database<R> {
    fn clone(&self) -> Self {
        Self {
            eid: self.eid,
            queue: self.queue.clone(),
            reads: self.reads.clone(),
            published: self.published.clone(),
            wakes: self.wakes.clone(),
            losers: self.losers.clone(),
            now: self.now,
        }
    }
}

impl<R: Reads> Database<R> {
    pub fn eid(&self) -> Eid {
        self.eid
    }

    /// The wall clock, as the writer reads it.
    pub fn now(&self) -> UnixMs {
        (self.now)()
    }

    /// Carries out an input; returns when it is durable.
    pub async fn submit(&self, input: Input) -> Result<Outcome, SubmitError> {
        let (answer, outcome) = oneshot::channel();
        let job = Job::Input { input, answer };
        self.queue.send(job).await.map_err(|_| SubmitError::Stopping)?;
        outcome.await.map_err(|_| SubmitError::Stopping)?
    }

    /// One exchanged family at one moment, its sketch with its records; none if it is not exchanged here. While it
    /// is held, the store keeps what it shows: not for long.
    pub async fn snapshot(&self, family: &Family) -> Result<Option<Snapshot<R::Reader>>, SubmitError> {
        let (answer, snapshot) = oneshot::channel();
        let reads = self.reads.clone();
        let begin = Box::new(move |pinned: Option<Snapshot<()>>| {
            let with_read = |pinned: Snapshot<()>| reads.read().map(|read| pinned.with(read));
            // Whoever asked may have gone away.
            let _ = answer.send(pinned.map(with_read).transpose());
        });
        let job = Job::Pin { family: family.clone(), begin };
        self.queue.send(job).await.map_err(|_| SubmitError::Stopping)?;
        Ok(snapshot.await.map_err(|_| SubmitError::Stopping)??)
    }

    /// Returns when the writer has ended. As long as there is a handle only a panic ends it: an invariant
    /// is broken, nothing can be written any more, and the node must not go on as if nothing had happened.
    pub async fn writer_ended(&self) {
        self.queue.closed().await;
    }

    /// A consistent view of what is durable.
    pub fn view(&self) -> Result<View<R::Reader>, StoreError> {
        let families = self.published.borrow().ledger.families.clone();
        Ok(View { read: self.reads.read()?, families, eid: self.eid })
    }

    pub fn published(&self) -> Arc<Published> {
        self.published.borrow().clone()
    }

    /// Changes with every batch.
    pub fn watch(&self) -> watch::Receiver<Arc<Published>> {
        self.published.clone()
    }

    /// The writes to a record that lost lately, newest first.
    pub fn losers(&self, key: &RecordKey) -> Vec<Loser> {
        self.losers.lock().unwrap_or_else(PoisonError::into_inner).of(key).cloned().collect()
    }

    /// Changes when a family has new entries of one of these classes in the change feed.
    pub fn wakes(&self, family: &Family, classes: Classes) -> watch::Receiver<u64> {
        self.wakes.subscribe(family, classes)
    }
}

/// The running writer thread. It ends when the last [`Database`] handle is gone.
pub struct Writer(JoinHandle<()>);

impl Writer {
    /// Waits for the thread, which closes the store. Call it when all handles are dropped.
    pub fn join(self) {
        if let Err(panic) = self.0.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Starts the writer thread over an open replica. `now` reads the wall clock; `on_batch` counts. Where it is
/// called in a runtime, a task of that runtime hands out the answers of large batches; it ends with the thread.
pub fn start<S>(
    replica: Replica<S>,
    limits: WriterLimits,
    now: fn() -> UnixMs,
    on_batch: impl FnMut(BatchReport<'_>) + Send + 'static,
) -> std::io::Result<(Database<S::Reads>, Writer)>
where
    S: Store + Send + 'static,
{
    let (queue, inbox) = mpsc::channel(limits.queue_max);
    let (publish, published) = watch::channel(Arc::new(publication(&replica, None)));
    let (wakes, losers) = (Wakes::default(), SharedLosers::default());
    let database = Database {
        eid: replica.eid(),
        queue,
        reads: replica.store().reads(),
        published,
        wakes: wakes.clone(),
        losers: losers.clone(),
        now,
    };
    let hand_over = tokio::runtime::Handle::try_current().ok().map(|runtime| {
        let (due, queue) = mpsc::channel(HAND_OVER_QUEUE_MAX);
        runtime.spawn(hand_out(queue));
        due
    });
    let batch_max = limits.batch_max;
    let mut thread = Thread { replica, inbox, batch_max, now, on_batch, publish, wakes, losers, hand_over };
    let handle = std::thread::Builder::new().name("kinfolk-writer".into()).spawn(move || thread.run())?;
    Ok((database, Writer(handle)))
}

fn publication<S: Store>(replica: &Replica<S>, fault: Option<StoreError>) -> Published {
    Published { ledger: replica.ledger().clone(), run: replica.run(), clock_last: replica.clock_last(), fault }
}

struct Thread<S: Store, F> {
    replica: Replica<S>,
    inbox: mpsc::Receiver<Job>,
    batch_max: usize,
    now: fn() -> UnixMs,
    on_batch: F,
    publish: watch::Sender<Arc<Published>>,
    wakes: Wakes,
    losers: SharedLosers,
    hand_over: Option<mpsc::Sender<Due>>,
}

impl<S: Store, F: FnMut(BatchReport<'_>)> Thread<S, F> {
    fn run(&mut self) {
        let mut jobs = Vec::new();
        while self.inbox.blocking_recv_many(&mut jobs, self.batch_max) > 0 {
            let (mut inputs, mut answers, mut pins) = (Vec::new(), Vec::new(), Vec::new());
            for job in jobs.drain(..) {
                match job {
                    Job::Input { input, answer } => {
                        inputs.push(input);
                        answers.push(answer);
                    }
                    Job::Pin { family, begin } => pins.push((family, begin)),
                }
            }
            if !inputs.is_empty() {
                self.carry_out(inputs, answers);
            }
            for (family, begin) in pins {
                begin(self.replica.pin(&family));
            }
        }
    }

    fn carry_out(&mut self, inputs: Vec<Input>, answers: Vec<Answer>) {
        let count = inputs.len();
        #[expect(clippy::disallowed_methods, reason = "measures how long a batch takes; decides nothing")]
        let started = Instant::now();
        let result = self.replica.handle(inputs, (self.now)());
        let took = started.elapsed();
        let fault = result.as_ref().err().cloned();
        // Published before anyone is answered or woken: whoever hears of a write finds it.
        self.publish.send_replace(Arc::new(publication(&self.replica, fault)));
        (self.on_batch)(BatchReport { result: result.as_ref(), inputs: count, took });
        match result {
            Ok(committed) => {
                self.losers.lock().unwrap_or_else(PoisonError::into_inner).extend(committed.losers);
                self.wakes.wake(&committed.touched, self.replica.ledger().head);
                self.answer(answers.into_iter().zip(committed.outcomes).collect());
            }
            Err(error) => {
                // The commit may have reached the disk all the same, and then followers have something to read.
                let ledger = self.replica.ledger();
                let all = ledger.families.shared().into_keys().map(|family| (family, Classes::ALL)).collect();
                self.wakes.wake(&all, ledger.head);
                for answer in answers {
                    give(answer, Err(SubmitError::Store(error.clone())));
                }
            }
        }
    }

    fn answer(&self, mut due: Due) {
        if due.len() >= HAND_OVER_MIN
            && let Some(hand_over) = &self.hand_over
        {
            match hand_over.blocking_send(due) {
                Ok(()) => return,
                // The runtime is gone, and most who asked are gone with it.
                Err(undelivered) => due = undelivered.0,
            }
        }
        for (answer, outcome) in due {
            give(answer, Ok(outcome));
        }
    }
}

async fn hand_out(mut queue: mpsc::Receiver<Due>) {
    while let Some(due) = queue.recv().await {
        for (answer, outcome) in due {
            give(answer, Ok(outcome));
        }
    }
}

fn give(answer: Answer, outcome: Result<Outcome, SubmitError>) {
    // Whoever asked may have gone away; what they asked for is done all the same.
    let _ = answer.send(outcome);
}
