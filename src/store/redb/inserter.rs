//! The write transaction of redb, and who writes rows with it: its owner, or, where rows are many, a thread of its own,
//! while the owner goes on to make more of them.
//!
//! Invariants: rows are written in the order in which they were handed in. Whoever wants the transaction itself waits
//! until all that was handed in is written; the thread never outlives the transaction.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use ::redb::{ReadTransaction, WriteTransaction};

use super::held::Held;
use super::rows::Table;
use super::{Opened, from_commit, from_storage, from_table};
use crate::core::storage::StoreError;

/// Tables' changes that wait for the thread at most; the owner waits beyond that.
const QUEUE_MAX: usize = 8;

/// What a commit needs besides the transaction.
pub(super) struct Closing {
    pub opened: Arc<Opened>,
    /// The state before the transaction.
    pub before: Arc<ReadTransaction>,
}

impl Closing {
    pub fn commit(self, txn: WriteTransaction) -> Result<(), StoreError> {
        let Self { opened, before } = self;
        opened.disk.begin_commit()?;
        opened.set_before_commit(Some(before));
        let committed = txn.commit().map_err(from_commit);
        // A lost commit is the reason for whatever redb may say of it.
        opened.disk.end_commit()?;
        // A snapshot keeps the pages that it shows from being used again.
        opened.set_before_commit(None);
        committed
    }
}

enum Job {
    Begin(Box<WriteTransaction>),
    Rows(Table, Held),
    Commit(Closing),
}

/// What the thread leaves.
enum Left {
    Open(Box<WriteTransaction>, Result<(), StoreError>),
    Closed(Result<(), StoreError>),
}

/// Who has the transaction.
enum Holder {
    Owner(Box<WriteTransaction>),
    Thread(Thread),
    /// In between, and after the commit.
    Nobody,
}

pub(super) struct Inserter {
    holder: Holder,
    /// Rows that were handed in are not all in the tables.
    failed: Option<StoreError>,
    /// It was wanted back once: handing it to and fro costs more than the thread saves.
    stays: bool,
}

impl Inserter {
    pub fn new(txn: Box<WriteTransaction>) -> Self {
        Self { holder: Holder::Owner(txn), failed: None, stays: false }
    }

    /// The transaction itself, with all rows written that were handed in.
    pub fn own(&mut self) -> Result<&WriteTransaction, StoreError> {
        if let Holder::Thread(thread) = &mut self.holder {
            let Left::Open(txn, written) = thread.end() else { unreachable!("it was not told to commit") };
            (self.holder, self.failed, self.stays) = (Holder::Owner(txn), written.err(), true);
        }
        match (&self.holder, &self.failed) {
            (_, Some(error)) => Err(error.clone()),
            (Holder::Owner(txn), None) => Ok(txn),
            _ => unreachable!("the transaction is somewhere until the commit"),
        }
    }

    /// Writes rows soon. `many`: more are to come, so that it is worth a thread.
    pub fn write(&mut self, table: Table, held: Held, many: bool) -> Result<(), StoreError> {
        if many && !self.stays {
            self.lend();
        }
        match &self.holder {
            Holder::Thread(thread) => {
                thread.hand_in(Job::Rows(table, held));
                Ok(())
            }
            _ => insert(self.own()?, table, held),
        }
    }

    fn lend(&mut self) {
        // Handed in once the thread runs: one that cannot be started would take the transaction with it.
        if let Holder::Owner(_) = self.holder
            && let Ok(thread) = Thread::start()
        {
            let Holder::Owner(txn) = std::mem::replace(&mut self.holder, Holder::Thread(thread)) else {
                unreachable!()
            };
            let Holder::Thread(thread) = &self.holder else { unreachable!() };
            thread.hand_in(Job::Begin(txn));
        }
    }

    /// Commits. Where a thread has the transaction, `meanwhile` is done at the same time; else after a commit that
    /// succeeded.
    pub fn commit(mut self, closing: Closing, meanwhile: impl FnOnce()) -> Result<(), StoreError> {
        if let Holder::Thread(thread) = &mut self.holder {
            thread.hand_in(Job::Commit(closing));
            meanwhile();
            let Left::Closed(committed) = thread.end() else { unreachable!("it was told to commit") };
            return committed;
        }
        self.own()?;
        let Holder::Owner(txn) = std::mem::replace(&mut self.holder, Holder::Nobody) else { unreachable!() };
        closing.commit(*txn)?;
        meanwhile();
        Ok(())
    }
}

struct Thread {
    /// None once it is to end.
    jobs: Option<SyncSender<Job>>,
    handle: Option<JoinHandle<Left>>,
}

impl Thread {
    fn start() -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE_MAX);
        let handle = std::thread::Builder::new().name("kinfolk-insert".into()).spawn(move || work(queue))?;
        Ok(Self { jobs: Some(jobs), handle: Some(handle) })
    }

    fn hand_in(&self, job: Job) {
        // It ends early only by a panic, which is passed on when it is waited for.
        let _ = self.jobs.as_ref().expect("it was not told to end").send(job);
    }

    /// Waits until it has done everything.
    fn end(&mut self) -> Left {
        self.jobs = None;
        match self.handle.take().expect("it is waited for once").join() {
            Ok(left) => left,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Thread {
    /// A transaction that is given up is over when its owner has gone on: the store may be opened again then.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(handle) = self.handle.take() {
            // What was broken there will be seen by whoever goes on.
            let _ = handle.join();
        }
    }
}

fn work(queue: Receiver<Job>) -> Left {
    let Ok(Job::Begin(txn)) = queue.recv() else { unreachable!("the transaction comes first") };
    let mut written = Ok(());
    for job in queue {
        match job {
            Job::Begin(_) => unreachable!("there is one transaction"),
            Job::Rows(table, held) => written = written.and_then(|()| insert(&txn, table, held)),
            Job::Commit(closing) => return Left::Closed(written.and_then(|()| closing.commit(*txn))),
        }
    }
    Left::Open(txn, written)
}

fn insert(txn: &WriteTransaction, table: Table, mut held: Held) -> Result<(), StoreError> {
    let mut table = txn.open_table(table).map_err(from_table)?;
    for (key, row) in held.in_order() {
        match row {
            Some(row) => table.insert(key, row),
            None => table.remove(key),
        }
        .map_err(from_storage)?;
    }
    Ok(())
}
