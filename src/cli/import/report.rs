//! What became of an import, line by line where it matters and in counts elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path as FilePath, PathBuf};

use super::BatchAnswer;
use crate::cli::show_text::Skip;
use crate::core::path::{Path, Value};

/// How many refused or unreadable lines are told in full.
const TOLD_MAX: usize = 20;

pub struct Report {
    pub file: PathBuf,
    pub kind: &'static str,
    dry_run: bool,
    /// The node failed before the end.
    pub broken_off: bool,
    pub lines: u64,
    /// What the text's own footer says, if that is something else than what was read.
    pub announced: Option<usize>,
    pub padded: usize,
    to_write: u64,
    to_delete: u64,
    to_merge: u64,
    won: u64,
    lost: u64,
    same: u64,
    written: u64,
    skipped: BTreeMap<Skip, (u64, BTreeSet<String>)>,
    /// Marks of the text as `family mode`.
    marks: Vec<String>,
    faults: Told,
    refused: Told,
}

/// Lines with a reason, the first of them in full.
#[derive(Default)]
struct Told {
    count: u64,
    first: Vec<(usize, String)>,
}

impl Told {
    fn add(&mut self, line: usize, reason: String) {
        self.count += 1;
        if self.first.len() < TOLD_MAX {
            self.first.push((line, reason));
        }
    }

    fn print(&self, what: &str, out: &mut dyn Write) -> io::Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        writeln!(out, "{:>8}  {what}:", self.count)?;
        for (line, reason) in &self.first {
            writeln!(out, "            line {line}: {reason}")?;
        }
        match self.count - self.first.len() as u64 {
            0 => Ok(()),
            more => writeln!(out, "            and {more} more"),
        }
    }
}

impl Report {
    pub fn new(file: &FilePath, dry_run: bool) -> Self {
        Self {
            file: file.to_path_buf(),
            kind: "nothing",
            dry_run,
            broken_off: false,
            lines: 0,
            announced: None,
            padded: 0,
            to_write: 0,
            to_delete: 0,
            to_merge: 0,
            won: 0,
            lost: 0,
            same: 0,
            written: 0,
            skipped: BTreeMap::new(),
            marks: Vec::new(),
            faults: Told::default(),
            refused: Told::default(),
        }
    }

    pub fn fault(&mut self, line: usize, reason: String) {
        self.faults.add(line, reason);
    }

    pub fn refused(&mut self, line: usize, reason: String) {
        self.refused.add(line, reason);
    }

    pub fn skip(&mut self, skip: Skip, path: Path, value: &Value) {
        if skip == Skip::Mark {
            let family = path.as_str().trim_start_matches('/').split_once('/').map_or("", |(_, family)| family);
            self.marks.push(format!("{family} {}", value.as_str().to_lowercase()));
        }
        let (count, families) = self.skipped.entry(skip).or_default();
        *count += 1;
        families.insert(path.top().to_string());
    }

    /// A line that is going to be sent.
    pub fn planned(&mut self, new: bool, tombstone: bool) {
        match (new, tombstone) {
            (true, false) => self.to_write += 1,
            (true, true) => self.to_delete += 1,
            (false, _) => self.to_merge += 1,
        }
    }

    pub fn count(&mut self, answer: &BatchAnswer) {
        self.won += answer.won;
        self.lost += answer.lost;
        self.same += answer.same;
        self.written += answer.written;
    }

    /// Whether every line was either taken or skipped by rule.
    pub fn all_taken(&self) -> bool {
        self.faults.count == 0 && self.refused.count == 0 && self.announced.is_none()
    }

    pub fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let end = if self.broken_off { ", not all sent: the node failed" } else { "" };
        writeln!(out, "{}: {}, {} lines{end}", self.file.display(), self.kind, self.lines)?;
        let counts = if self.dry_run {
            vec![
                (self.to_write, "would be written anew"),
                (self.to_delete, "would be deleted anew"),
                (self.to_merge, "would be merged by their stamps"),
            ]
        } else {
            vec![
                (self.written, "written anew"),
                (self.won, "merged, newer than what was here"),
                (self.lost, "merged, older than what is here"),
                (self.same, "merged, here already"),
            ]
        };
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            writeln!(out, "{count:>8}  {what}")?;
        }
        for (skip, (count, families)) in &self.skipped {
            let families: Vec<&str> = families.iter().map(String::as_str).collect();
            writeln!(out, "{count:>8}  skipped, {skip} ({})", families.join(", "))?;
        }
        self.refused.print("refused by the node", out)?;
        self.faults.print("not understood", out)?;
        self.print_notes(out)
    }

    fn print_notes(&self, out: &mut dyn Write) -> io::Result<()> {
        if let Some(announced) = self.announced {
            writeln!(out, "Note: the text itself announces {announced} rows: is it complete?")?;
        }
        if self.padded > 0 {
            let padded = self.padded;
            writeln!(
                out,
                "Note: {padded} values were padded with blanks; trailing blanks of the values themselves are lost."
            )?;
        }
        if !self.marks.is_empty() {
            writeln!(out, "Note: that server shared these families; to share them here:")?;
        }
        for mark in &self.marks {
            writeln!(out, "  kinfolk database put shared {mark}")?;
        }
        if self.broken_off {
            writeln!(out, "Note: run the import again when the node is well.")?;
        }
        Ok(())
    }
}
