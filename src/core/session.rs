//! Follow streams as state machines, no sockets: what a source sends, what a follower does with it.
//!
//! A stream carries one family from one source to one follower. The follower asks from its durable cursor
//! in the scope that it names; the source reads its change feed from there. There are no acknowledgements:
//! what the follower applies and its new cursor are one transaction, and a reconnect resumes there.

mod window;

use std::ops::ControlFlow;

use self::window::Window;
use super::clock::Hlc;
use super::codec::FRAME_MAX_BYTES;
use super::eid::Eid;
use super::family::{Families, Mode};
use super::message::{Entries, Follow, FollowReply};
use super::path::Family;
use super::reconcile::Ended;
use super::record::{Classes, Record, RecordKey, Stored};
use super::replica::Apply;
use super::storage::{Cursor, CursorKey, Read, Run, StoreError};

/// How many bytes of records go into one frame: below the frame's limit by more than any fixed part.
const BATCH_MAX_BYTES: usize = FRAME_MAX_BYTES - 4_096;
/// How many entries of the feed are looked at for one frame, wanted or not: bounds the time of one read.
const SCAN_MAX_ENTRIES: usize = 16_384;
/// A cursor that only moved past entries of other scopes is kept when it moved this far: it saves a scan
/// after a restart, no more.
const IDLE_CURSOR_STRIDE: u64 = 10_000;

/// The records of one frame.
#[derive(Default)]
struct Frame {
    records: Vec<Record>,
    bytes: usize,
}

impl Frame {
    /// Breaks where the record does not fit any more.
    fn take(&mut self, key: RecordKey, stored: Stored) -> ControlFlow<()> {
        let record = Record::new(key, stored);
        let bytes = self.bytes + record.frame_bytes();
        if bytes > BATCH_MAX_BYTES && !self.records.is_empty() {
            return ControlFlow::Break(());
        }
        self.bytes = bytes;
        self.records.push(record);
        ControlFlow::Continue(())
    }
}

/// The sending side of a follow stream.
#[derive(Debug)]
pub struct Source {
    family: Family,
    mode: Mode,
    classes: Classes,
    sent_to: u64,
    /// The sharing that it serves, by the sequence number of its mark.
    since: u64,
    /// The purge floor at which it does.
    floor: Hlc,
    /// Whether the follower has been told how far it is complete.
    spoken: bool,
    /// A follower that fetches everything gets it in the order of keys.
    window: Option<Window>,
}

impl Source {
    /// Judges a follower's request. No source means that the stream ends with the reply.
    pub fn open<R: Read>(
        read: &R,
        families: &Families,
        request: &Follow,
    ) -> Result<(FollowReply, Option<Source>), StoreError> {
        let mode = families.mode_of(&request.family);
        if mode != Some(request.mode) && !mutant!(UnsharedServed) {
            return Ok((FollowReply::NotShared { mode }, None));
        }
        let floor = families.floor_of(&request.family);
        if floor != Some(request.floor) {
            return Ok((FollowReply::OtherFloor { floor }, None));
        }
        let runs = read.runs()?;
        let head = read.head()?;
        let run = runs.last().expect("a store that is open has a run").run;
        let mut since = families.mark(&request.family).map_or(0, |mark| mark.since);
        if mutant!(SinceIgnored) {
            since = 0;
        }
        let part_end = |cursor: Cursor| {
            if mutant!(RunIgnored) {
                return Some(head.max(cursor.seq));
            }
            let at = runs.iter().position(|start| start.run == cursor.run)?;
            if mutant!(OldRunPartIgnored) {
                return Some(head.max(cursor.seq));
            }
            Some(runs.get(at + 1).map_or(head, |next| next.first_seq - 1))
        };
        let sent_to = match request.cursor {
            None => 0,
            Some(cursor) => match part_end(cursor) {
                Some(end) if cursor.seq <= end && cursor.seq >= since => cursor.seq,
                _ => return Ok((FollowReply::Compare { run, head }, None)),
            },
        };
        let (family, mut classes) = (request.family.clone(), request.classes);
        if mutant!(FilterAtSource) {
            classes = Classes::LOCAL;
        }
        let floor = request.floor;
        let window = (classes == Classes::ALL).then(Window::default);
        let source = Source { family, mode: request.mode, classes, sent_to, since, floor, spoken: false, window };
        Ok((FollowReply::Resume { run, head }, Some(source)))
    }

    /// The next frame, or none if the follower has been told everything. A frame without records only
    /// says that the follower is complete further than it knew.
    pub fn next<R: Read>(&mut self, read: &R) -> Result<Option<Entries>, StoreError> {
        let head = read.head()?;
        if self.spoken && head == self.sent_to {
            return Ok(None);
        }
        if self.window.is_some() {
            return self.next_by_key(read, head).map(Some);
        }
        let mut frame = Frame::default();
        let mut full_before = None;
        let mut failed = None;
        let came_to =
            read.feed_of(self.family.top(), self.classes, self.sent_to, SCAN_MAX_ENTRIES, &mut |(seq, _, key)| {
                if !self.carries(&key) {
                    return ControlFlow::Continue(());
                }
                match read.record(&key) {
                    Ok(stored) => {
                        let taken = frame.take(key, stored.expect("what stands in the feed is in the store"));
                        full_before = taken.is_break().then_some(seq);
                        taken
                    }
                    Err(error) => {
                        failed = Some(error);
                        ControlFlow::Break(())
                    }
                }
            })?;
        if let Some(error) = failed {
            return Err(error);
        }
        let complete_to = match full_before {
            Some(seq) if mutant!(BatchEndSkipsRecord) => seq,
            Some(seq) => seq - 1,
            None => came_to.unwrap_or(head),
        };
        self.sent_to = complete_to;
        self.spoken = true;
        Ok(Some(Entries { records: frame.records, complete_to, head }))
    }

    /// The same, where everything is fetched: the follower is complete further only where a stretch of the feed ends.
    fn next_by_key<R: Read>(&mut self, read: &R, head: u64) -> Result<Entries, StoreError> {
        let window = self.window.as_mut().expect("checked by the caller");
        if window.is_empty() {
            window.gather(read, &self.family, self.mode, self.classes, self.sent_to)?;
        }
        let records = window.next(read, &self.family)?;
        if window.is_empty() {
            self.sent_to = window.complete_to;
        }
        self.spoken = true;
        Ok(Entries { records, complete_to: self.sent_to, head })
    }

    /// Copies that others own may be left from a time when the family was shared in the other mode.
    fn carries(&self, key: &RecordKey) -> bool {
        key.path.key_in(&self.family).is_some() && (self.mode.owns(key) || mutant!(ModeIgnored))
    }

    /// Whether the sharing that this stream was opened under still stands. The driver asks whenever marks
    /// changed, and ends the stream if not: else an unshared family would still be served.
    pub fn still_serves(&self, families: &Families) -> bool {
        if mutant!(StreamOutlivesSharing) || self.family == Family::books() {
            return true;
        }
        let same_floor = families.floor_of(&self.family) == Some(self.floor);
        same_floor && families.mark(&self.family).is_some_and(|mark| mark.since == self.since)
    }

    /// Whether entries of these classes are for this follower.
    pub fn wants(&self, classes: Classes) -> bool {
        self.classes.intersects(classes)
    }

    pub fn family(&self) -> &Family {
        &self.family
    }

    /// How far the follower has been sent everything.
    pub fn sent_to(&self) -> u64 {
        self.sent_to
    }
}

/// What the driver of a follower does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read the next frame.
    Read,
    /// Apply this first; only then read on.
    Apply(Apply),
    /// Apply this, then end the stream and open another with [`Follower::request`].
    ApplyThenReopen(Apply),
    /// End the stream and open another with [`Follower::request`], after a reconcile if
    /// [`Follower::must_compare`] says so.
    Reopen,
    /// The source does not share the family in this mode: give up until membership says otherwise.
    GiveUp { mode: Option<Mode> },
    /// The two have different purge floors: end the stream, and try again in a moment.
    OtherFloor { floor: Option<Hlc> },
}

/// The source said something that a correct one does not say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("entries came before the reply to the request")]
    EntriesBeforeReply,
    #[error("a second reply came on one stream")]
    SecondReply,
    #[error("complete to {complete_to} was said after {before}")]
    Backwards { before: u64, complete_to: u64 },
}

/// The receiving side of a follow stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follower {
    source: Eid,
    /// The source is at another site.
    crossing: bool,
    family: Family,
    mode: Mode,
    /// This node's sharing of the family when the follower began.
    since: u64,
    /// Its purge floor of the family then.
    floor: Hlc,
    wanted: Classes,
    /// The scope of the present stream: the wanted one, or everything while the family is fetched whole.
    asked: Classes,
    cursor: Option<Cursor>,
    /// The run of the source, once it has replied on the present stream.
    run: Option<Run>,
    /// The source's head when last heard of.
    head: u64,
    /// The cursor as it is kept in the store.
    kept_seq: u64,
    /// It compares with its source before it asks: what is equal needs not come again.
    must_compare: bool,
}

impl Follower {
    /// Starts from the durable cursor of the wanted scope; else from the cursor of an attempt to fetch everything
    /// that was cut short; else it compares first.
    pub fn new<R: Read>(
        read: &R,
        source: Eid,
        crossing: bool,
        family: Family,
        mode: Mode,
        wanted: Classes,
    ) -> Result<Self, StoreError> {
        let cursor_of = |classes| read.cursor(&CursorKey { source, family: family.clone(), classes });
        let (asked, cursor) = match cursor_of(wanted)? {
            None if mutant!(ScopeChangeIgnored) => (wanted, cursor_of(Classes::LOCAL)?),
            Some(cursor) => (wanted, Some(cursor)),
            None => (Classes::ALL, cursor_of(Classes::ALL)?),
        };
        let kept_seq = cursor.map_or(0, |cursor| cursor.seq);
        let since = read.marks()?.get(&family).map_or(0, |mark| mark.since);
        let (run, head, must_compare) = (None, 0, cursor.is_none());
        let floor = read.floors()?.get(&family).map_or(Hlc::ZERO, |floor| floor.adopted);
        Ok(Self {
            source,
            crossing,
            family,
            mode,
            since,
            floor,
            wanted,
            asked,
            cursor,
            run,
            head,
            kept_seq,
            must_compare,
        })
    }

    /// The plan names this source anew, in this scope. What others have crossed to it comes over another source while
    /// this one is not followed, and its cursor counts nothing of that: so it compares first, although it has a cursor, and
    /// goes on from there if too much differs. What sources wrote themselves comes from nobody else.
    pub fn take_up(&mut self) {
        self.must_compare |= self.wanted != Classes::LOCAL;
    }

    /// Whether the next thing to do is a reconcile with the source, whose end goes to [`Self::on_compared`].
    pub fn must_compare(&self) -> bool {
        self.must_compare
    }

    /// A reconcile with the source has ended. Where both are equal now, the follower starts at the head that the
    /// source had when they compared; where too much differs, it asks from its cursor on, or without one for everything
    /// from the beginning. None: it must be tried again.
    pub fn on_compared(&mut self, ended: &Ended) -> Option<Next> {
        let (run, head) = match *ended {
            Ended::Equal { run, head } | Ended::Reconciled { run, head, .. } => (run, head),
            Ended::Everything | Ended::LeftToPeer => {
                self.must_compare = false;
                return Some(Next::Reopen);
            }
            Ended::NotShared { mode } => return Some(Next::GiveUp { mode }),
            Ended::OtherFloor { .. } | Ended::Busy => return None,
        };
        let seq = if mutant!(ComparedHeadTooFar) { head + 1 } else { head };
        let cursor = Cursor { run, seq };
        (self.must_compare, self.cursor, self.head, self.kept_seq) = (false, Some(cursor), head, seq);
        let left = std::mem::replace(&mut self.asked, self.wanted);
        Some(Next::ApplyThenReopen(Apply {
            source: self.source,
            crossing: self.crossing,
            family: self.family.clone(),
            mode: self.mode,
            since: Some(self.since),
            floor: Some(self.floor),
            records: Vec::new(),
            cursor: Some((self.wanted, cursor)),
            drop_cursor: (left != self.wanted).then_some(left),
        }))
    }

    /// The request that opens the next stream.
    pub fn request(&mut self) -> Follow {
        self.run = None;
        Follow {
            family: self.family.clone(),
            mode: self.mode,
            classes: self.asked,
            cursor: self.cursor,
            floor: self.floor,
        }
    }

    pub fn on_reply(&mut self, reply: FollowReply) -> Result<Next, Violation> {
        if self.run.is_some() {
            return Err(Violation::SecondReply);
        }
        match reply {
            FollowReply::Resume { run, head } => {
                if mutant!(ResumedAtHead) && self.wanted != Classes::LOCAL {
                    self.cursor = Some(Cursor { run, seq: head });
                }
                self.run = Some(run);
                self.head = head;
                Ok(Next::Read)
            }
            FollowReply::Compare { run, head } if mutant!(CompareSkips) => {
                self.cursor = Some(Cursor { run, seq: head });
                Ok(Next::Reopen)
            }
            FollowReply::Compare { head, .. } => {
                self.head = head;
                self.asked = Classes::ALL;
                self.cursor = None;
                self.kept_seq = 0;
                self.must_compare = true;
                Ok(Next::Reopen)
            }
            FollowReply::NotShared { mode } => Ok(Next::GiveUp { mode }),
            FollowReply::OtherFloor { floor } => Ok(Next::OtherFloor { floor }),
        }
    }

    pub fn on_entries(&mut self, entries: Entries) -> Result<Next, Violation> {
        let run = self.run.ok_or(Violation::EntriesBeforeReply)?;
        let before = self.cursor.map_or(0, |cursor| cursor.seq);
        let Entries { records, complete_to, head } = entries;
        if complete_to < before {
            return Err(Violation::Backwards { before, complete_to });
        }
        self.head = head;
        let cursor = Cursor { run, seq: complete_to };
        // A follower that is complete to nowhere yet has nothing to resume.
        self.cursor = (complete_to > 0).then_some(cursor);
        let whole = self.asked != self.wanted && complete_to >= head;
        let idle = records.is_empty() && complete_to - self.kept_seq < IDLE_CURSOR_STRIDE && self.kept_seq > 0;
        if idle && !whole {
            return Ok(Next::Read);
        }
        self.kept_seq = complete_to;
        let mut apply = Apply {
            source: self.source,
            crossing: self.crossing,
            family: self.family.clone(),
            mode: self.mode,
            since: Some(self.since),
            floor: Some(self.floor),
            records,
            cursor: self.cursor.map(|cursor| (self.asked, cursor)),
            drop_cursor: None,
        };
        if !whole {
            return Ok(Next::Apply(apply));
        }
        // Everything of the family up to here is here, so the wanted scope is complete as well.
        apply.cursor = Some((self.wanted, cursor));
        apply.drop_cursor = Some(self.asked);
        self.asked = self.wanted;
        Ok(Next::ApplyThenReopen(apply))
    }

    /// The source's head when last heard of, less the cursor: how far this follower lags, in entries.
    pub fn lag_entries(&self) -> u64 {
        self.head.saturating_sub(self.cursor.map_or(0, |cursor| cursor.seq))
    }

    /// Whether this follower has everything that its source had when last heard of.
    pub fn caught_up(&self) -> bool {
        self.asked == self.wanted && self.run.is_some() && self.lag_entries() == 0
    }

    pub fn cursor(&self) -> Option<Cursor> {
        self.cursor
    }

    pub fn cursor_seq(&self) -> u64 {
        self.cursor.map_or(0, |cursor| cursor.seq)
    }

    pub fn head(&self) -> u64 {
        self.head
    }

    /// The scope of the present stream.
    pub fn asked(&self) -> Classes {
        self.asked
    }
}
