-- KEYS: a workflow's record. ARGV: what to do, milliseconds to keep; then, but for `cancel`, the record.
--
-- A record is one string: its marks (1 when it has ended, plus 2 when somebody asked to cancel it), 16 bytes of fingerprint, and
-- JSON. Where a workflow was to be cancelled that has no record, there are the marks alone, for a while.
--
-- accept: creates it, unless it is known. Answers { 0 new | 1 known | 2 known with another content, marks and all }.
-- write:  writes it, unless it has ended. Answers { 0 it had ended | 1 it is written, marks and all }.
-- cancel: marks it, unless it has ended. Answers { 0 there is none | 1 its marks and all }.

local ENDED, UNWANTED = 1, 2
local DO, KEEP, new = ARGV[1], ARGV[2], ARGV[3]

local known = redis.call('GET', KEYS[1])
local marks = known and byte(known, 1) or 0
local is_unwanted, is_there = marks >= UNWANTED, known and #known > 1

local function marked(record)
  local marks = byte(record, 1)
  return pack('<B', marks % 2 + (is_unwanted and UNWANTED or 0)) .. sub(record, 2)
end

if DO == 'accept' then
  if is_there then
    return { sub(known, 2, 17) == sub(new, 2, 17) and 1 or 2, known }
  end
  new = marked(new)
  redis.call('SET', KEYS[1], new, 'PX', KEEP)
  return { 0, sub(new, 1, 1) }
elseif DO == 'write' then
  if is_there and marks % 2 == ENDED then
    return { 0, known }
  end
  new = marked(new)
  redis.call('SET', KEYS[1], new, 'PX', KEEP)
  return { 1, sub(new, 1, 1) }
end
if not is_there then
  redis.call('SET', KEYS[1], pack('<B', UNWANTED), 'PX', KEEP)
  return { 0, '' }
end
if marks % 2 ~= ENDED and not is_unwanted then
  is_unwanted = true
  known = marked(known)
  redis.call('SET', KEYS[1], known, 'KEEPTTL')
end
return { 1, known }
