//! Where a page of a list ends: a number, and a check that nobody made it up by mistake.

use super::StoreError;

pub(super) fn write(place: u64) -> String {
    format!("{place:016x}{:04x}", check(place))
}

pub(super) fn read(cursor: &str) -> Result<u64, StoreError> {
    let digits = cursor.len() == 20 && cursor.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !digits {
        return Err(StoreError::BadCursor);
    }
    let place = u64::from_str_radix(&cursor[..16], 16).map_err(|_| StoreError::BadCursor)?;
    let found = u64::from_str_radix(&cursor[16..], 16).map_err(|_| StoreError::BadCursor)?;
    if found == check(place) { Ok(place) } else { Err(StoreError::BadCursor) }
}

fn check(place: u64) -> u64 {
    place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_no_other_is() {
        for place in [0, 1, 1_732_456_789_123_456, u64::MAX] {
            let cursor = write(place);
            assert_eq!(read(&cursor), Ok(place));
            let forged =
                if cursor.starts_with('0') { cursor.replacen('0', "1", 1) } else { cursor.replacen('f', "e", 1) };
            assert_eq!(read(&forged), Err(StoreError::BadCursor));
        }
    }
}
