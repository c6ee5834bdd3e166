-- KEYS: the list, its counter, then each task's record.
-- ARGV: milliseconds to keep, most listed, how many records to look at together (1 when a task is there twice); then each
--       task's run and result. Who settles is said by who is to hold the task: nobody while nobody does (0), the attempt
--       that claimed it (1), or a first attempt that need not have claimed (2).
-- Answers 1 when all are done and nobody is to be told besides; otherwise for each: 0 when it is stale, 1 or the followers
-- when it is done, { 2, followers or nil } when this attempt had settled it before, { 3, record } when another had.

local KEEP, LISTED, TOGETHER = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local CLAIMED, FIRST = 1, 2

local now = clock()
local answers, entries, plain = {}, {}, 0
local records

for number = 1, #KEYS - 2 do
  local place = (number - 1) % TOGETHER + 1
  if place == 1 then
    records = redis.call('MGET', unpack(KEYS, number + 2, math.min(number + 1 + TOGETHER, #KEYS)))
  end
  local key, record, ending, guard = KEYS[number + 2], records[place], ARGV[number + 3], byte(ARGV[number + 3], 6)

  if not record or #record == 1 then
    local _, now_us = clock()
    local stamp = pack('<I8', now_us)
    redis.call('SET', key, '\1' .. stamp .. string.rep('\0', 21) .. ending, 'PX', KEEP)
    entries[#entries + 1] = listed(key, stamp)
    answers[number] = 1
    plain = plain + 1
  else
    local at = run_of(record)
    local tries, held, holder, lease = attempt_of(record, at)
    local own = held > 0 and guard > 0 and holder == sub(ending, 7, 22)
      and (guard == FIRST or sub(record, at + 1, at + 4) == sub(ending, 2, 5))

    if byte(record, at) >= SUCCEEDED then
      if own then
        answers[number] = { 2, followers_of(record, at) or false }
      else
        answers[number] = { 3, record }
      end
    elseif own or (guard ~= CLAIMED and (held == 0 or lease <= now)) then
      if guard == FIRST and tries > 1 then
        ending = sub(ending, 1, 1) .. sub(record, at + 1, at + 4) .. sub(ending, 6)
      end
      local done = sub(record, 1, at - 1) .. ending
      if at == 31 then
        redis.call('SET', key, done, 'PX', KEEP)
        answers[number] = 1
        plain = plain + 1
      else
        write(key, done, at, KEEP)
        answers[number] = followers_of(record, at) or 1
      end
    else
      answers[number] = 0
    end
  end
end

list(KEYS[1], KEYS[2], entries, LISTED)
return plain == #KEYS - 2 and 1 or answers
