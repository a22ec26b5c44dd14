//! Planted faults for the simulator to find. Compiled only under the feature `mutants`, and off until one
//! is switched on: one at a time, for the whole process.
//!
//! Each stands where a careless change could put it. A fault that no check finds is a missing check.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The place of the active fault in [`Mutant::ALL`], plus one; 0 for none.
static ACTIVE: AtomicUsize = AtomicUsize::new(0);

macro_rules! mutants {
    ($($name:ident: $what:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant {
            $(#[doc = $what] $name,)*
        }

        impl Mutant {
            /// Every planted fault, and what it does.
            pub const ALL: &[(Mutant, &str, &str)] = &[$((Mutant::$name, stringify!($name), $what),)*];
        }
    };
}

mutants! {
    AckBeforeCommit: "outcomes are released although the commit failed",
    AdmitAgain: "a node enters itself in the books at every start",
    AnsweredBeforeCommit: "an Asterisk is answered 200 before its update is durable",
    AnswersAreUpdates: "what an Asterisk answers when it is asked for its content is taken for new",
    AnswersNeverOld: "such an answer is taken for new although something was sent meanwhile",
    BatchEndSkipsRecord: "a full frame claims to be complete one entry further than it is",
    BridgeForgotten: "nobody asks a mate for what a missed mate wrote",
    CarrierForgotten: "only the relay ever tries to reach another site",
    ClassConfused: "what arrives is kept as written here",
    ClockDoesNotObserve: "the clock is not shown the stamps that arrive",
    ClockNotSeeded: "the clock starts anew at a restart",
    CompareSkips: "a follower that must compare goes to the head of its source instead",
    ComparedHeadTooFar: "a follower that has compared begins behind the head of its source",
    CrossedMarkLost: "a record forgets that it has crossed between sites",
    CursorBeforeData: "the cursor is committed before the records that it counts",
    CursorBeforePush: "an Asterisk's cursor moves before it has what lies behind it",
    CursorNotDropped: "unsharing keeps the cursors of the family",
    CursorNotKept: "the cursor is not stored with the records",
    DecodedTooEarly: "a comparison ends before all differences have come out",
    DeleteLosesToValue: "an arriving tombstone never replaces a value",
    DeletesNotTold: "deletes are not sent to an Asterisk",
    DeltreeTakesOthers: "deltree deletes the unique copies of others as well",
    DetourForgotten: "nobody goes round by a third site for what an unreachable member wrote",
    EchoForgotten: "an update that crossed a push is not followed by another",
    ElsewhereIgnored: "a family is shared though a live member shares it in the other mode",
    FailedCommitForgotten: "after a failed commit the state is not read afresh",
    FarNotAsked: "the nodes of a site do not ask their relay for what has crossed",
    FeedEntryLeft: "a rewritten record keeps its old place in the feed as well",
    FeedEntrySkipped: "a rewritten record loses its place in the feed",
    FetchedNotFar: "what was fetched nearby does not count as come from another site",
    FilterAtSource: "the source sends its own writes only, whatever the follower asks for",
    FragmentsIgnored: "a site whose members cannot reach each other is followed at one of them",
    FutureStampObserved: "the clock follows stamps beyond the drift limit",
    HeadNotStored: "the head of the feed is not committed",
    ImportStampsAfresh: "stamped lines of an import become new writes",
    LateAnswers: "a late answer to an earlier question is taken for one to the last",
    LeftOverAccepted: "bytes left over behind a frame's payload are ignored",
    LimitsBindMerge: "a node's own limits refuse what arrives",
    LosersSent: "a reconcile sends the lesser of two stamps as well",
    LowerFloorStays: "a floor that was written later and is lower stays in the books",
    ModeIgnored: "a source serves copies that others own in a family shared globally",
    NearNotAsked: "a relay asks another site's node for its own writes only",
    NearerClassIgnored: "a record that came from afar first stays far",
    NobodyDoubts: "a node that did not take part in a round keeps its old values",
    OffersForgotten: "a reconcile does not send all that the other lacks",
    OldContentWins: "the content of a restarted Asterisk is stamped as new",
    OldImportTaken: "an import brings back what lies below the floor",
    OldItemStays: "a sketch keeps what a record replaced",
    OldRunPartIgnored: "a cursor beyond the end of its run's part is resumed",
    OverlapAllowed: "a family inside a shared one can be shared as well",
    OvertakenForgotten: "a push settles a record although an update of it came meanwhile",
    OwnVersionSpoken: "a node speaks the greatest version that it knows, whatever its peer speaks",
    OwnerNotHashed: "a sketch does not tell the copies of two owners apart",
    PromiseNotKept: "a node stamps below what it has promised",
    PushNotRepeated: "a push that failed is left",
    QuarantineForgets: "what is doubtful is deleted instead of set aside",
    RegisterRuleLeftOut: "a write may bear a lesser stamp than what it replaces",
    RehomeForgotten: "sharing as unique leaves the records without an owner",
    RestartIgnored: "an Asterisk that was restarted is not sent everything again",
    ResumedAtHead: "a stream goes on at the head of its source instead of at the cursor",
    RetransmissionWritten: "a repeated PUBLISH is a new write",
    RootsAlwaysEqual: "a comparison of roots says equal",
    RunIgnored: "a cursor of an unknown run is resumed",
    SameBodyWrittenAgain: "the body that comes again after a 412 is a new write",
    ScopeChangeIgnored: "a follower that wants more continues from the cursor of what it had",
    ShadowNotKept: "the shadow is not committed with the write",
    ShortReadAccepted: "a frame that is cut off is filled up with zeros",
    SilentSiteNotTried: "a site of which nobody is known to live is not dialled",
    SinceIgnored: "a cursor from before the sharing is resumed",
    SketchSurvivesFailure: "after a failed commit the sketches are not built afresh",
    StaleTally: "the tally does not count what a record replaces",
    StandbyForgotten: "a relay that cannot be reached stays the relay",
    StreamOutlivesSharing: "a stream goes on when its family is not shared any more",
    TieByArrival: "of two stamps of one moment the later arrival wins",
    TombstoneForgotten: "a delete in a shared family removes the record",
    UniqueDelete: "a unique delete is sent to an Asterisk",
    UnsharedReceived: "records of a family that is not shared are taken",
    UnsharedServed: "a family that is not shared is served",
    ValueHashNotSketched: "a sketch does not see the hash of the value",
    VerifyNever: "no verify is ever started",
    VerifyNeverEnds: "a verify that has ended is thought to run on",
    VersionIgnored: "a frame of another protocol version is read",
    WaitedForEver: "a connection that does not come is waited for without end",
    WantForgotten: "a reconcile does not ask for all that it lacks",
    WrittenTwice: "one input makes two stamps",
}

impl Mutant {
    #[inline]
    pub fn is_on(self) -> bool {
        ACTIVE.load(Ordering::Relaxed) == self as usize + 1
    }

    /// Switches one fault on, or all off.
    pub fn activate(which: Option<Mutant>) {
        ACTIVE.store(which.map_or(0, |mutant| mutant as usize + 1), Ordering::Relaxed);
    }
}
