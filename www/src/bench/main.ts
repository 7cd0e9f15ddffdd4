import "../tokens.css";
import { closeWaysOut } from "luthier-web";
import { mount } from "svelte";
import Bench from "./Bench.svelte";

closeWaysOut();
mount(Bench, { target: document.getElementById("app")! });
