-- What the scripts share; it stands before each of them.
--
-- A task's record is one string, because one string is written with its expiry in one command. Numbers are little-endian.
--
--   at  bytes
--    1   1  format of the record: 1
--    2   8  stamp, drawn anew: tells the record from an earlier one of the same id in the list
--   10   1  how the fingerprint was made; 0 when there is none, because only a settlement made the record
--   11  16  fingerprint
--   27   4  length of what is kept to the end
--   31      kept to the end: length (2 bytes) and key of the idempotency key; followers: JSON, each between line feeds
--
-- Then its run; `at` is where it begins:
--
--   +0   1  state, as numbered below
--   +1   4  attempts begun
--   +5   1  whether an attempt holds the task or has settled it: 0 none, 1 one that claimed, 2 a first one that did not;
--           and, while it has not ended, its marks: plus 4 when somebody asked to cancel it, plus 8 when the attempt that
--           holds it has its worker to itself, plus 16 times (n + 1) when it was given the priority n
--   +6  16  nonce of that attempt
--  +22   8  until when it holds the task: milliseconds since the epoch
--  +30   8  when it began: microseconds since the epoch
--  +38   8  when the task was dispatched: microseconds since the epoch, 0 when it was not
--  +46   4  lengths of model and worker, 2 bytes each
--  +50      model that was chosen, worker of that attempt
--
-- The rest is the task as it was accepted, or its result once it has ended. No script looks into it.
--
-- Where a task was to be cancelled that has no record, there is one byte instead of a record, for a while.

local QUEUED, DISPATCHED, RUNNING, SUCCEEDED = 1, 2, 3, 4
local ALONE = 8

local byte, sub, pack, unpack_of = string.byte, string.sub, struct.pack, struct.unpack

-- Milliseconds and microseconds since the epoch: every lease is judged by this one clock.
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000), time[1] * 1000000 + time[2]
end

-- A key's record, or nil.
local function record_at(key)
  local record = redis.call('GET', key)
  return record and #record > 1 and record or nil
end

-- Where the run of a record begins.
local function run_of(record)
  return 31 + unpack_of('<I4', record, 27)
end

-- Key of a record's idempotency key, or nil; and where its followers begin.
local function alias_of(record, at)
  if at == 31 then
    return nil, at
  end
  local length = unpack_of('<I2', record, 31)
  return length > 0 and sub(record, 33, 32 + length) or nil, 33 + length
end

-- Attempts begun, whether one holds the task, its nonce, and until when.
local function attempt_of(record, at)
  local tries, held, holder, lease = unpack_of('<I4Bc16I8', record, at + 1)
  return tries, held % 4, holder, lease
end

-- What was asked of a task while it lives.
local function marks_of(record, at)
  local held = byte(record, at + 5)
  return held - held % 4
end

-- Whether somebody asked to cancel it.
local function unwanted(record, at)
  return marks_of(record, at) % 8 >= 4
end

-- Whether the attempt that holds it has its worker to itself.
local function is_alone(record, at)
  return marks_of(record, at) % 16 >= ALONE
end

-- The marks that outlive an attempt.
local function marks_but_alone(record, at)
  return marks_of(record, at) - (is_alone(record, at) and ALONE or 0)
end

-- The record with other marks.
local function marked(record, at, marks)
  return sub(record, 1, at + 4) .. pack('<B', byte(record, at + 5) % 4 + marks) .. sub(record, at + 6)
end

-- A record is kept for so long from now, in milliseconds, and so is the key that leads to it.
local function write(key, record, at, ms)
  redis.call('SET', key, record, 'PX', ms)
  local alias = alias_of(record, at)
  if alias then
    redis.call('PEXPIRE', alias, ms)
  end
end

-- What is to be told besides, or nil.
local function followers_of(record, at)
  local _, from = alias_of(record, at)
  return from < at and sub(record, from, at - 1) or nil
end

-- The record with a follower that is not there yet, while there are fewer than `most`; and where its run begins then.
-- `follower` has a line feed on either side.
local function follow(record, at, follower, most)
  local alias, from = alias_of(record, at)
  local told = from < at and sub(record, from, at - 1) or '\n'
  if string.find(told, follower, 1, true) then
    return record, at
  end
  local _, lines = string.gsub(told, '\n', '')
  if lines - 1 >= most then
    return record, at
  end
  alias = alias or ''
  local kept = pack('<I2', #alias) .. alias .. told .. sub(follower, 2)
  return sub(record, 1, 26) .. pack('<I4', #kept) .. kept .. sub(record, at), 31 + #kept
end

-- How the list names a record.
local function listed(key, stamp)
  return sub(key, -32) .. stamp
end

-- Lists tasks and forgets the oldest beyond `most`. `counter` counts all that ever were.
local function list(key, counter, entries, most)
  if #entries > 0 and most > 0 then
    redis.call('INCRBY', counter, #entries)
    if redis.call('RPUSH', key, unpack(entries)) > most then
      redis.call('LTRIM', key, -most, -1)
    end
  end
end
