-- KEYS: each task's record. ARGV: prefix of streams, prefix of their heads, milliseconds to keep, most bytes, most parts; then for
-- each task: attempt (4 bytes), nonce (16), and what it says: kind (1 byte: 0 a part, 1 progress), length (4), bytes.
-- Answers for each: 0 when it is kept, 1 when the stream is full, 2 when the attempt has no right to it.
--
-- A head is: attempt (4), nonce (16), last number (8), bytes (4), parts (4), whether it is full (1), number of the progress (8, 0
-- when there is none), the progress.

local answers = {}
local most_bytes, most_parts = tonumber(ARGV[4]), tonumber(ARGV[5])

-- Whether the attempt may speak for its task.
local function may_speak(record, nonce)
  if not record then
    return true
  end
  local at = run_of(record)
  local _, held, holder = attempt_of(record, at)
  return byte(record, at) < SUCCEEDED and (held == 0 or holder == nonce)
end

for number, key in ipairs(KEYS) do
  local said = ARGV[number + 5]
  local attempt, nonce = unpack_of('<I4c16', said)
  local stream, head = ARGV[1] .. sub(key, -32), ARGV[2] .. sub(key, -32)
  local before = redis.call('GET', head)
  local last, bytes, parts, full, marked_at, progress = 0, 0, 0, 0, 0, ''
  local speaks = may_speak(record_at(key), nonce)
  if before and speaks then
    local tries, speaker = unpack_of('<I4c16', before)
    if attempt < tries or attempt == tries and speaker ~= nonce then
      speaks = false
    elseif attempt > tries then
      last = unpack_of('<I8', before, 21)
      redis.call('DEL', stream)
    else
      last, bytes, parts, full, marked_at = unpack_of('<I8I4I4BI8', before, 21)
      progress = sub(before, 46)
    end
  end
  if speaks then
    local at = 21
    while at <= #said do
      local kind, length = unpack_of('<BI4', said, at)
      local body = sub(said, at + 5, at + 4 + length)
      at = at + 5 + length
      if kind == 1 then
        last = last + 1
        marked_at, progress = last, body
      elseif full == 0 then
        last = last + 1
        if bytes + length > most_bytes or parts + 1 > most_parts then
          full, body = 1, ''
        else
          bytes, parts = bytes + length, parts + 1
        end
        redis.call('XADD', stream, string.format('%.0f-0', last), 'b', body)
      end
    end
    redis.call('SET', head, pack('<I4c16I8I4I4BI8', attempt, nonce, last, bytes, parts, full, marked_at) .. progress,
      'PX', ARGV[3])
    redis.call('PEXPIRE', stream, ARGV[3])
    answers[number] = full
  else
    answers[number] = 2
  end
end
return answers
