// openai-node: models, chat, streams, tools, structured output, completions, responses, errors.
import { readFileSync } from "node:fs";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const asked = JSON.parse(readFileSync(0, "utf8"));
const attempts = [];
const client = new OpenAI({
  baseURL: `${asked.url}/v1`,
  apiKey: asked.api_key,
  timeout: 300_000,
  fetch: (url, options) => {
    attempts.push(String(url));
    return fetch(url, options);
  },
});
const question = (key) => [{ role: "user", content: asked[key] }];
const raised = async (call) => {
  try {
    return `nothing, but ${JSON.stringify(await call())}`;
  } catch (error) {
    return error.constructor.name;
  }
};
const attemptsOf = async (call) => {
  const before = attempts.length;
  await raised(call);
  return attempts.length - before;
};

const told = {};
told.models = [];
for await (const model of client.models.list()) told.models.push(model.id);
told.retrieved = await client.models
  .retrieve("sql")
  .then((model) => model.id)
  .catch((error) => error.constructor.name);
told.retrieved_unknown = await raised(() => client.models.retrieve("nope"));

const chat = { model: "sql", messages: question("sql"), max_tokens: 60, temperature: 0 };
const whole = await client.chat.completions.create(chat);
told.chat = whole.choices[0].message.content;
told.chat_model = whole.model;
const stream = await client.chat.completions.create({
  ...chat,
  stream: true,
  stream_options: { include_usage: true },
});
told.streamed = "";
for await (const chunk of stream) {
  told.streamed += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) told.usage_differs = chunk.usage.total_tokens - whole.usage.total_tokens;
}
const helper = client.chat.completions.stream(chat);
told.stream_helper = await helper.finalContent();

const forced = await client.chat.completions.create({
  model: "triage",
  messages: [{ role: "user", content: asked.unit }],
  tools: [{ type: "function", function: { name: "set_unit", parameters: asked.unit_parameters } }],
  tool_choice: { type: "function", function: { name: "set_unit" } },
  parallel_tool_calls: false,
  max_completion_tokens: 120,
  temperature: 0,
});
told.tool = forced.choices[0].message.tool_calls[0].function.name;
told.tool_unit = JSON.parse(forced.choices[0].message.tool_calls[0].function.arguments).unit;

const Ticket = z.object({ team: z.enum(["billing", "support"]), urgent: z.boolean() });
const parsed = await client.chat.completions.parse({
  model: "triage",
  messages: question("triage"),
  response_format: zodResponseFormat(Ticket, "ticket"),
  max_tokens: 80,
  temperature: 0,
});
told.parsed = parsed.choices[0].message.parsed;

const completion = await client.completions.create({
  model: "base",
  prompt: asked.france,
  max_tokens: 5,
  temperature: 0,
  logprobs: 2,
});
told.completion = completion.choices[0].text;
told.logprobs = completion.choices[0].logprobs.token_logprobs.length;
const response = await client.responses.create({
  model: "sql",
  input: asked.sql,
  max_output_tokens: 60,
  temperature: 0,
});
told.response = response.output_text;

told.unknown_key = await raised(() => client.chat.completions.create({ ...chat, model: "nope" }));
told.bad_parameter = await raised(() => client.chat.completions.create({ ...chat, top_p: 7 }));
told.embeddings = await raised(() => client.embeddings.create({ model: "sql", input: "x" }));
told.attempts = {
  success: await attemptsOf(() => client.chat.completions.create(chat)),
  unknown_key: await attemptsOf(() => client.models.retrieve("nope")),
  bad_parameter: await attemptsOf(() => client.chat.completions.create({ ...chat, top_p: 7 })),
};
console.log(JSON.stringify(told));
