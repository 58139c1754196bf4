//! The body of a changeset's entry: its sealed boxes, one for each scope, as a MessagePack array.
//!
//! A box is a native body (suite byte first), an array of them begins with another byte: so the two
//! cannot be taken for each other.

use serde_bytes::ByteBuf;

/// Most boxes of one entry: one for the group, one for each person who could have written it.
const BOXES_MAX: usize = 8;

/// The boxes of a body; none if it is not such a body, or is spelled in another way than the shortest.
pub(crate) fn split(body: &[u8]) -> Option<Vec<ByteBuf>> {
    let boxes: Vec<ByteBuf> = rmp_serde::from_slice(body).ok()?;
    let again = rmp_serde::to_vec(&boxes).ok()?;
    ((1..=BOXES_MAX).contains(&boxes.len()) && again == body).then_some(boxes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_split_into_its_boxes_and_nothing_else_is() {
        let boxes = vec![ByteBuf::from(vec![1, 2]), ByteBuf::from(vec![3])];
        let body = rmp_serde::to_vec(&boxes).expect("encoded");
        assert_eq!(split(&body), Some(boxes));
        let mut longer = body.clone();
        longer.push(0);
        for wrong in [&longer[..], &[1, 2, 3], &[0x90], &[0x91, 0xc5, 0, 1, 7], &[]] {
            assert_eq!(split(wrong), None);
        }
    }
}
