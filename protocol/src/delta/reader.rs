//! From bytes as they arrive to blocks. No I/O: the caller fetches what [`Reader::position`] names, pushes what
//! comes, and writes what [`Reader::next`] gives.

use super::{Block, DeltaError, ENTRY, HEADER, Header, Plan};

/// What a reader can do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// It needs the bytes of the delta from [`Reader::position`] on.
    Bytes,
    /// A block is complete.
    Block(Piece),
    /// The new file is complete.
    Done,
}

/// A complete block.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which.
    pub number: usize,
    /// How it is made.
    pub block: Block,
    /// Its bytes in the delta.
    pub stored: Vec<u8>,
    /// Bytes of its output that are in the new file already; less than all of them.
    pub skip: u32,
}

/// Reads one delta.
#[derive(Debug)]
pub struct Reader {
    want: Header,
    /// Bytes of the new file that are there.
    have: u64,
    /// In the delta, of the first byte of `held`.
    start: u64,
    held: Vec<u8>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Header,
    Index(Header, usize),
    Blocks { plan: Plan, next: usize, output: u64 },
}

impl Reader {
    /// Reads the delta between these files, of which the first `have` bytes of the new one are there.
    pub const fn new(want: Header, have: u64) -> Self {
        Self { want, have, start: 0, held: Vec::new(), stage: Stage::Header }
    }

    /// Which byte of the delta is wanted next. May jump forward once the index is known: blocks that are not needed
    /// are not fetched.
    pub const fn position(&self) -> u64 {
        self.start + self.held.len() as u64
    }

    /// The plan, once it is known.
    pub const fn plan(&self) -> Option<&Plan> {
        match &self.stage {
            Stage::Blocks { plan, .. } => Some(plan),
            _ => None,
        }
    }

    /// Takes bytes that begin at [`Self::position`]; says how many of them it has taken. Call [`Self::next`] until
    /// it asks for more before the rest is pushed.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let taken = self.wanted().saturating_sub(self.held.len()).min(bytes.len());
        self.held.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// Bytes that complete what is being read.
    fn wanted(&self) -> usize {
        match &self.stage {
            Stage::Header => HEADER,
            Stage::Index(_, bytes) => *bytes,
            Stage::Blocks { plan, next, .. } => plan.blocks().get(*next).map_or(0, |b| b.stored as usize),
        }
    }

    /// What can be done with what was pushed.
    #[allow(clippy::should_implement_trait)] // it fails, and its end is a value
    pub fn next(&mut self) -> Result<Next, DeltaError> {
        loop {
            let complete = self.held.len() == self.wanted();
            match &mut self.stage {
                Stage::Header | Stage::Index(..) if !complete => return Ok(Next::Bytes),
                Stage::Header => {
                    let head = self.held.first_chunk::<HEADER>().ok_or(DeltaError::Format)?;
                    let (header, blocks) = Header::parse(head)?;
                    agree(&header, &self.want)?;
                    self.stage = Stage::Index(header, ENTRY * blocks as usize);
                }
                Stage::Index(header, _) => {
                    let plan = Plan::parse(*header, &self.held)?;
                    self.stage = Stage::Blocks { plan, next: 0, output: 0 };
                }
                Stage::Blocks { plan, next, output } => {
                    let Some(block) = plan.blocks().get(*next).copied() else { return Ok(Next::Done) };
                    let end = *output + u64::from(block.output);
                    if end <= self.have {
                        // There already. Its bytes were not asked for, so none of them are held.
                        (*next, *output) = (*next + 1, end);
                        self.start += u64::from(block.stored);
                        continue;
                    }
                    if !complete {
                        return Ok(Next::Bytes);
                    }
                    // Less than `block.output`, because `end` is beyond `have`.
                    let skip = u32::try_from(self.have.saturating_sub(*output)).unwrap_or(0);
                    let number = *next;
                    (*next, *output) = (number + 1, end);
                    self.start += self.held.len() as u64;
                    let stored = std::mem::take(&mut self.held);
                    return Ok(Next::Block(Piece { number, block, stored, skip }));
                }
            }
            self.start += self.held.len() as u64;
            self.held = Vec::new();
        }
    }
}

fn agree(got: &Header, want: &Header) -> Result<(), DeltaError> {
    if (got.old, got.new) != (want.old, want.new) {
        return Err(DeltaError::Foreign { old: got.old, new: got.new });
    }
    let sizes = [("old", got.old_size, want.old_size), ("new", got.new_size, want.new_size)];
    match sizes.into_iter().find(|(_, got, expected)| got != expected) {
        Some((which, got, expected)) => Err(DeltaError::Size { which, got, expected }),
        None => Ok(()),
    }
}
