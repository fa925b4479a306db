// Vercel's AI SDK with its OpenAI-compatible provider: text, stream, object, tool, errors.
import { readFileSync } from "node:fs";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, streamText, tool } from "ai";
import { z } from "zod";

const asked = JSON.parse(readFileSync(0, "utf8"));
const server = createOpenAICompatible({
  name: "stacked",
  baseURL: `${asked.url}/v1`,
  apiKey: asked.api_key,
  supportsStructuredOutputs: true,
});
const common = { temperature: 0, maxOutputTokens: 60, maxRetries: 0 };
const raised = async (call) => {
  try {
    return `nothing, but ${JSON.stringify(await call())}`;
  } catch (error) {
    return `${error.name} ${error.statusCode}`;
  }
};

const sql = { ...common, model: server("sql"), prompt: asked.sql };
const told = {};
told.chat = (await generateText(sql)).text;
told.streamed = "";
for await (const piece of streamText(sql).textStream) told.streamed += piece;
const parsed = await generateText({
  ...common,
  model: server("triage"),
  prompt: asked.triage,
  output: Output.object({
    schema: z.object({ team: z.enum(["billing", "support"]), urgent: z.boolean() }),
  }),
});
told.parsed = parsed.output;
const called = await generateText({
  ...common,
  model: server("triage"),
  prompt: asked.unit,
  tools: { set_unit: tool({ inputSchema: jsonSchema(asked.unit_parameters) }) },
  toolChoice: { type: "tool", toolName: "set_unit" },
});
told.tool = called.toolCalls[0].toolName;
told.tool_unit = called.toolCalls[0].input.unit;
told.unknown_key = await raised(() => generateText({ ...sql, model: server("nope") }));
told.bad_parameter = await raised(() => generateText({ ...sql, topP: 7 }));
console.log(JSON.stringify(told));
