-- KEYS: each task's record.
-- ARGV: milliseconds to keep; then for each claim: worker, nonce, milliseconds of the lease, most attempts, attempts
--       that the envelope knows of.
-- Answers for each: the attempt to run (from 1), 0 for a record that is unknown, -n when it is busy for n milliseconds,
-- { attempts } when it is exhausted, { attempts, 1 } when it is to be cancelled, or its record when it has ended.

local KEEP = ARGV[1]
local now, now_us = clock()
local answers = {}

for number, key in ipairs(KEYS) do
  local argument = number * 5 - 4
  local worker, nonce, lease_ms = ARGV[argument + 1], ARGV[argument + 2], tonumber(ARGV[argument + 3])
  local record = record_at(key)
  local at = record and run_of(record)

  if not record then
    answers[number] = 0
  elseif byte(record, at) >= SUCCEEDED then
    answers[number] = record
  else
    local tries, held, holder, lease = attempt_of(record, at)
    if held > 0 and holder == nonce then
      write(key, sub(record, 1, at + 21) .. pack('<I8', now + lease_ms) .. sub(record, at + 30), at, KEEP)
      answers[number] = tries
    elseif held > 0 and lease > now then
      answers[number] = now - lease
    elseif unwanted(record, at) then
      answers[number] = { tries, 1 }
    else
      tries = math.max(tries, tonumber(ARGV[argument + 5]))
      if tries >= tonumber(ARGV[argument + 4]) then
        answers[number] = { tries }
      else
        local sent, model, old = unpack_of('<I8I2I2', record, at + 38)
        local run = pack('<BI4Bc16I8I8I8I2I2', RUNNING, tries + 1, 1 + marks_of(record, at), nonce, now + lease_ms, now_us, sent, model,
          #worker)
        write(key, sub(record, 1, at - 1) .. run .. sub(record, at + 50, at + 49 + model) .. worker
          .. sub(record, at + 50 + model + old), at, KEEP)
        answers[number] = tries + 1
      end
    end
  end
end
return answers
