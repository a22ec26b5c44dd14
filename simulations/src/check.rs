//! The promises of the design (§2) as named checks, and what a broken one looks like.

use std::fmt;

/// Every check by name. A run ends at the first that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// §2.1: replicas of a family end with identical content.
    Convergence,
    /// §2.2: what survives is the greatest stamp among the acknowledged writes, and nothing invented.
    KnownWinner,
    /// §2.3: what was acknowledged is on disk, after a crash as well.
    DurableAck,
    /// §2.4: a deleted key stays deleted.
    NoResurrection,
    /// §2.5: a write beats what its node had seen.
    BeatsWhatItSaw,
    /// §2.5: no two writes to one record bear one stamp, and one input makes one stamp.
    OneStampOnce,
    /// §2.6: every input gets the outcome that it deserves, whatever the network does.
    StaysWritable,
    /// §2.7: frames, queues and feeds stay within their limits.
    Bounded,
    /// §3: who has not marked a family neither receives nor serves it.
    SharingOnly,
    /// §3: a cursor says truly how far its follower has everything.
    CursorHonest,
    /// §3: classes and the crossed mark tell where a record came from.
    ClassTrue,
    /// §6: the clock does not follow stamps beyond the drift limit.
    ClockSane,
    /// §6: who is wrong is named, and nobody else.
    Alarms,
    /// Tallies, head and floors agree with the store.
    Ledger,
    /// §4: after a verify each side has what the other had.
    VerifiedTrue,
    /// What a node shows is what it holds.
    View,
    /// What is damaged on the wire is refused.
    Wire,
    /// §6: what is doubtful is set aside, and nothing else.
    Quarantine,
    /// A run ends: nothing goes round in circles.
    Ends,
    /// No invariant of the program itself breaks.
    NoPanic,
}

impl Check {
    pub fn name(self) -> &'static str {
        match self {
            Check::Convergence => "convergence",
            Check::KnownWinner => "known-winner",
            Check::DurableAck => "durable-ack",
            Check::NoResurrection => "no-resurrection",
            Check::BeatsWhatItSaw => "beats-what-it-saw",
            Check::OneStampOnce => "one-stamp-once",
            Check::StaysWritable => "stays-writable",
            Check::Bounded => "bounded",
            Check::SharingOnly => "sharing-only",
            Check::CursorHonest => "cursor-honest",
            Check::ClassTrue => "class-true",
            Check::ClockSane => "clock-sane",
            Check::Alarms => "alarms",
            Check::Ledger => "ledger",
            Check::VerifiedTrue => "verified-true",
            Check::View => "view",
            Check::Wire => "wire",
            Check::Quarantine => "quarantine",
            Check::Ends => "ends",
            Check::NoPanic => "no-panic",
        }
    }
}

/// A check that did not hold, and what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub check: Check,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check.name(), self.what)
    }
}

pub type Checked<T = ()> = Result<T, Violation>;

/// Holds, or the violation of `check`; the text is only made when it is needed.
pub fn ensure(holds: bool, check: Check, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Violation { check, what: what() }) }
}
