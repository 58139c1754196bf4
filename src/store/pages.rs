//! Pages of entries: the busiest read there is.
//!
//! A row costs more than what is in it: SQLite's connection wakes its reader for each, and every cell
//! is an allocation. So a page comes as one row: numbers as text, everything else as one run of bytes
//! that the numbers cut into pieces. That is three times cheaper than a row for each entry, on both
//! databases.
//!
//! A page is bounded by the bytes of the bodies that it gives. Their lengths are asked for first, so
//! that no body is read that is not given. Entries never change, so the two statements need no
//! common snapshot; a body that was deleted between them is merely not there any more.

use std::ops::Range;

use bytes::Bytes;
use sealwire_actors::ports::{LogKey, PageRequest, StoreError, StoredEntry};
use sealwire_protocol::header::{HEADER_BYTES, HeaderBytes};
use sealwire_protocol::ids::Signature;
use sealwire_protocol::{Body, Digest};
use sqlx::Executor;

use super::dialect::{Columns, Dialect, Value};
use super::failure::corrupt;
use super::lanes::Lanes;
use super::reads::{bound, recipients, seq};

/// Numbers of each entry in [`entries_as_one_row`]'s first column.
const NUMBERS: usize = 6;

/// The entries of a page as one row. `$empty` is the parameter that is an empty byte string.
macro_rules! entries_as_one_row {
    ($empty:literal, $($entries:tt)*) => {
        concat!(
            "select \
                string_agg(p.seq || ' ' || p.at || ' ' || coalesce(length(p.signature), -1) || ' ' \
                    || coalesce(length(p.recipients), 0) || ' ' || coalesce(length(p.body), -1) \
                    || ' ' || coalesce(octet_length(p.totals_kind), -1), ','), \
                string_agg(p.header || p.chain || coalesce(p.signature, ",
            $empty,
            ") || coalesce(p.recipients, ",
            $empty,
            ") || coalesce(p.body, ",
            $empty,
            "), ",
            $empty,
            "), string_agg(coalesce(p.totals_kind, ''), '') from (",
            $($entries)*,
            ") p"
        )
    };
}

/// Entries of log `$1` after `$2` up to `$3`, at most `$6`, with those bodies that are for the reader
/// `$5` who joined at `$4`; in a vault, all are. The header holds its sender at byte 18 (from 1).
/// `instr` would also match across two keys, but members whose keys' bytes fall so cannot be made:
/// that is a search over 128 bits.
macro_rules! from_entries_and_given_bodies {
    () => {
        " from entries e left join bodies b on b.log = e.log and b.seq = e.seq and ( \
            (select log_type from logs where key = $1) = 2 \
            or (e.seq > $4 and substr(e.header, 18, 32) <> $5 \
                and (e.recipients is null or instr(e.recipients, $5) > 0))) \
         where e.log = $1 and e.seq > $2 and e.seq <= $3 order by e.seq limit $6 + 0"
    };
}

/// Seqs, and the lengths of the bodies that are given.
const LENGTHS: &str = concat!(
    "select string_agg(p.seq || ' ' || p.bytes, ',') from ( \
        select e.seq, coalesce(length(e.control_body), length(b.body), 0) as bytes",
    from_entries_and_given_bodies!(),
    ") p"
);

const PAGE: &str = entries_as_one_row!(
    "$7",
    "select e.seq, e.at, e.header, e.chain, e.signature, e.recipients, \
        coalesce(e.control_body, b.body) as body, b.totals_kind",
    from_entries_and_given_bodies!()
);

const CONTROLS: &str = entries_as_one_row!(
    "$5",
    "select seq, at, header, chain, signature, recipients, control_body as body, \
        cast(null as text) as totals_kind \
     from entries where log = $1 and seq > $2 and seq <= $3 and control_body is not null \
     order by seq limit $4 + 0"
);

/// What stands in a run of bytes for what is not there.
const EMPTY: &[u8] = &[];

impl<D: Dialect> Lanes<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    pub(super) async fn read_page(
        &self,
        request: &PageRequest,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let values = |up_to| {
            [
                Value::Int(request.key.0),
                seq(request.after),
                seq(up_to),
                seq(request.joined_seq),
                Value::bytes(&request.reader.0),
                bound(request.entries_max),
                Value::bytes(EMPTY),
            ]
        };
        let mut lease = self.read().await?;
        let lengths = lease.rows(LENGTHS, &values(request.up_to)[..6]).await?;
        let Some(lengths) = lengths.first().map(|row| row.maybe_text(0)).transpose()?.flatten()
        else {
            return Ok(Vec::new());
        };
        let Some(up_to) = last_that_fits(lengths, request.bytes_max)? else {
            return Ok(Vec::new());
        };
        entries(&lease.rows(PAGE, &values(up_to)).await?)
    }

    pub(super) async fn read_controls(
        &self,
        key: LogKey,
        after: u64,
        up_to: u64,
        limit: usize,
    ) -> Result<Vec<StoredEntry>, StoreError> {
        let values = [Value::Int(key.0), seq(after), seq(up_to), bound(limit), Value::bytes(EMPTY)];
        entries(&self.query(CONTROLS, &values).await?)
    }
}

/// Lists of numbers: commas between lists, spaces within.
pub(super) fn lists<const LENGTH: usize>(
    text: &str,
) -> impl Iterator<Item = Result<[i64; LENGTH], StoreError>> {
    text.split(',').map(|list| {
        let mut numbers = [0; LENGTH];
        let mut parts = list.split(' ');
        for number in &mut numbers {
            let part = parts.next().and_then(|part| part.parse().ok());
            *number = part.ok_or_else(|| corrupt("a list of numbers"))?;
        }
        Ok(numbers)
    })
}

/// The seq up to which the bodies fit; the first is taken however long it is.
fn last_that_fits(lengths: &str, bytes_max: usize) -> Result<Option<u64>, StoreError> {
    let bytes_max = i64::try_from(bytes_max).unwrap_or(i64::MAX);
    let (mut last, mut bytes) = (None, 0_i64);
    for list in lists(lengths) {
        let [seq, length] = list?;
        bytes = bytes.saturating_add(length);
        if bytes > bytes_max && last.is_some() {
            break;
        }
        last = Some(u64::try_from(seq).map_err(|_| corrupt("a negative seq"))?);
    }
    Ok(last)
}

/// Unpacks what [`entries_as_one_row`] gives.
fn entries(rows: &[impl Columns]) -> Result<Vec<StoredEntry>, StoreError> {
    let Some(row) = rows.first() else { return Ok(Vec::new()) };
    let Some(numbers) = row.maybe_text(0)? else { return Ok(Vec::new()) };
    let mut bytes = Pieces { whole: row.bytes(1)?, at: 0 };
    let kinds = row.maybe_text(2)?.unwrap_or_default();
    let mut kinds = Pieces { whole: kinds.as_bytes(), at: 0 };
    let mut entries = Vec::new();
    for list in lists(numbers) {
        entries.push(entry(list?, &mut bytes, &mut kinds)?);
    }
    if bytes.at < bytes.whole.len() { Err(corrupt("a page's length")) } else { Ok(entries) }
}

fn entry(
    [seq, at, signature, recipient_bytes, body, kind]: [i64; NUMBERS],
    bytes: &mut Pieces<'_>,
    kinds: &mut Pieces<'_>,
) -> Result<StoredEntry, StoreError> {
    let unsigned = |number| u64::try_from(number).map_err(|_| corrupt("a negative number"));
    let header = bytes.next(HEADER_BYTES as i64)?.unwrap_or_default();
    let chain = bytes.next(Digest::LEN as i64)?.unwrap_or_default();
    let signature = bytes
        .next(signature)?
        .map(|bytes| Signature::from_slice(bytes).ok_or_else(|| corrupt("a signature")));
    Ok(StoredEntry {
        seq: unsigned(seq)?,
        at: unsigned(at)?,
        header: HeaderBytes::from_slice(header).map_err(|_| corrupt("a header"))?,
        signature: signature.transpose()?,
        recipients: recipients(bytes.next(recipient_bytes)?.unwrap_or_default())?,
        chain: Digest::from_slice(chain).ok_or_else(|| corrupt("a chain"))?,
        // Copied out, so that one body does not keep the whole page.
        body: bytes.next(body)?.map(|bytes| Body(Bytes::copy_from_slice(bytes))),
        totals_kind: kinds
            .next(kind)?
            .map(|kind| String::from_utf8(kind.to_vec()).map_err(|_| corrupt("a kind")))
            .transpose()?,
    })
}

/// A run of bytes that is cut into pieces from the front.
struct Pieces<'a> {
    whole: &'a [u8],
    at: usize,
}

impl<'a> Pieces<'a> {
    /// The next piece; `None` for a negative length, which means that there is none.
    fn next(&mut self, length: i64) -> Result<Option<&'a [u8]>, StoreError> {
        let Ok(length) = usize::try_from(length) else { return Ok(None) };
        let range: Range<usize> = self.at..self.at.saturating_add(length);
        let piece = self.whole.get(range).ok_or_else(|| corrupt("a page's length"))?;
        self.at += length;
        Ok(Some(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_body_is_taken_however_long_it_is_and_no_other() {
        assert_eq!(last_that_fits("4 900,5 0,7 1", 100), Ok(Some(4)));
        assert_eq!(last_that_fits("4 50,5 50,7 1", 100), Ok(Some(5)));
        assert_eq!(last_that_fits("4 0,5 0,7 0", 0), Ok(Some(7)));
        assert_eq!(last_that_fits("4", 100), Err(StoreError::Corrupt));
    }

    #[test]
    fn a_page_that_is_shorter_than_its_numbers_say_is_corrupt() {
        let mut pieces = Pieces { whole: b"abc", at: 0 };
        assert_eq!(pieces.next(2), Ok(Some(&b"ab"[..])));
        assert_eq!(pieces.next(-1), Ok(None));
        assert_eq!(pieces.next(0), Ok(Some(&b""[..])));
        assert_eq!(pieces.next(2), Err(StoreError::Corrupt));
        assert_eq!(pieces.next(i64::MAX), Err(StoreError::Corrupt));
    }
}
